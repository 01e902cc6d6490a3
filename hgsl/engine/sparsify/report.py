"""Results of a ticket search: its files, its costs, a table of its layers, and its curves."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from torch import nn

from hgsl.common import ranks
from hgsl.common.errors import InputError, first_line
from hgsl.common.files import atomic_path, read_json, write_text
from hgsl.config import SparsifyRunConfig
from hgsl.engine.folder.run_folder import COMPACT, COSTS, CURVES, LAYERS, REPORT, TICKET
from hgsl.engine.runtime import Runtime
from hgsl.engine.sparsify.problems import SparsifyProblem
from hgsl.models import Embedder, save_embedder
from hgsl.sparsity import benchmark, compact, save
from hgsl.sparsity.benchmark import table

Measured = tuple[nn.Module, Mapping[str, Any]]  # a network and its scores on the test images


def read_scores(folder: Path, quality: Sequence[str]) -> dict[str, Any]:
    """Returns the scores of the dense network's run in ``folder``, with at least those named in ``quality``.

    Raises:
        InputError: There is no such run, or it is unfinished or of another task.
    """
    path = folder / REPORT
    if not path.is_file():
        raise InputError(f"sparsify.dense_run {folder} holds no {REPORT}: let that run finish first")
    scores = read_json(path, "the report of a search").get("scores")
    if not isinstance(scores, dict) or not all(isinstance(scores.get(name), (int, float)) for name in quality):
        raise InputError(
            f"sparsify.dense_run: {path} holds no scores {', '.join(quality)}: "
            "give a run of the same task by hgsl sparsify --rounds 0"
        )
    return scores


def save_and_measure(
    folder: Path,
    config: SparsifyRunConfig,
    problem: SparsifyProblem,
    runtime: Runtime,
    trained: Measured,
    dense: Measured,
) -> tuple[dict[str, Any], list[str]]:
    """Saves the network and its compacted version, and measures both and the dense network.

    Args:
        folder: The run folder.
        config: The settings.
        problem: Its test images score the compacted network.
        runtime: The device on which time is measured.
        trained: The ticket with its masks multiplied in, or the dense network.
        dense: The network before the search, whose costs are measured, and the scores of a dense run, or none.

    Returns:
        The measurements by name, and notes on what could not be done.
    """
    settings, (plain, _) = config.sparsify, trained
    save(plain, folder / TICKET)
    if isinstance(plain, Embedder):
        save_embedder(plain, folder)
    networks_and_scores = {"dense": dense, "ticket": trained} if settings.rounds else {"dense": trained}
    notes = []
    if settings.rounds and settings.granularity == "channel":
        try:
            networks_and_scores["ticket, compacted"] = _save_compacted(plain, folder, problem)
        except Exception as error:  # of any type: after hours of search, report without this row
            notes.append(f"no compacted ticket: {first_line(error)}")
            ranks.print_main(f"note: {notes[-1]}")
    example = runtime.prepare(problem.example, channels_last=True)
    networks = {name: network for name, (network, _) in networks_and_scores.items()}
    quality = {
        name: {key: float(scores[key]) for key in problem.quality if key in scores}
        for name, (_, scores) in networks_and_scores.items()
    }
    costs = benchmark(networks, example, quality=quality)
    write_text(folder / COSTS, f"{table(costs)}\n")
    ranks.print_main(f"\n{runtime}, batches of {len(example)}\n{table(costs)}")
    return costs, notes


def _save_compacted(plain: nn.Module, folder: Path, problem: SparsifyProblem) -> Measured:
    small = compact(plain, problem.example[:2])
    scores = problem.final(small)
    save(small, folder / COMPACT)
    return small, scores


def write_layers(folder: Path, layers: Sequence[Mapping[str, Any]]) -> None:
    """Writes and prints a table of the masked layers."""
    lines = ["| layer | weights | remaining | density |", "| --- | --- | --- | --- |"]
    lines += [
        f"| {row['layer']} | {row['weights']:,} | {row['remaining']:,} | {row['density']:.3f} |" for row in layers
    ]
    write_text(folder / LAYERS, "\n".join(lines) + "\n")
    if layers:
        ranks.print_main("\n" + "\n".join(lines))


def write_plot(folder: Path, history: Sequence[Mapping[str, Any]], score_name: str) -> None:
    """Draws density and score over the epochs of all stages.

    Args:
        folder: The run folder.
        history: A record per epoch: ``stage``, ``density`` and, if measured, ``score``.
        score_name: Name of the score.
    """
    figure = Figure(figsize=(7.0, 3.4), layout="constrained", dpi=150)
    left = figure.subplots()
    right = left.twinx()
    epochs = range(1, len(history) + 1)
    scored = [
        (epoch, 100 * record["score"]) for epoch, record in zip(epochs, history, strict=True) if "score" in record
    ]
    lines = [
        *left.plot([x for x, _ in scored], [y for _, y in scored], color="C0", marker=".", label=f"{score_name} (%)"),
        *right.plot(epochs, [100 * record["density"] for record in history], color="C1", label="density (%)"),
    ]
    stages = [record["stage"] for record in history]
    for epoch, stage in enumerate(stages, start=1):
        if epoch == 1 or stage != stages[epoch - 2]:
            left.axvline(epoch - 0.5, color="0.8", linewidth=0.8)
            left.text(epoch, 1.01, stage, transform=left.get_xaxis_transform(), fontsize=8)
    left.set_xlabel("epoch")
    left.set_ylabel(f"{score_name} (%)")
    right.set_ylabel("density (%)")
    right.set_ylim(0, 105)
    left.legend(lines, [str(line.get_label()) for line in lines], frameon=False, loc="lower center")
    with atomic_path(folder / CURVES) as temporary:
        figure.savefig(temporary)
