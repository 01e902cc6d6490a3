"""Printed summary of a finished run, and the file of its scores per query."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hgsl.common import ranks
from hgsl.common.files import write_text
from hgsl.common.tables import columns_of, count_of, format_table, recall_of
from hgsl.engine.folder.run_folder import CURVES, PAGE, QUERIES
from hgsl.evaluation import RetrievalResult
from hgsl.evaluation.show.report import query_scores


def write_queries(folder: Path, result: RetrievalResult) -> None:
    """Writes ids and scores of the queries, by which ``compare`` pairs two runs."""
    write_text(folder / QUERIES, json.dumps(query_scores(result), separators=(",", ":")) + "\n")


def training_facts(records: Sequence[Mapping[str, float]], steps_per_epoch: int) -> dict[str, float]:
    """Returns the numbers for a summary: losses of the first and last epoch, the others of the last step."""
    if not records:
        return {}
    first, last = records[:steps_per_epoch], records[-steps_per_epoch:]
    numbers = {"steps": records[-1]["step"]}
    numbers["loss_first_epoch"] = sum(record["loss"] for record in first) / len(first)
    numbers["loss_last_epoch"] = sum(record["loss"] for record in last) / len(last)
    names = ("images_per_second", "data_wait_share", "alpha", "center_similarity", "density")
    return numbers | {name: records[-1][name] for name in names if name in records[-1]}


def print_summary(folder: Path, report: Mapping[str, Any]) -> None:
    """Prints the scores before and after, a line about the training, and the paths of page and curves."""
    before, after, training = report["before"], report["after"], report.get("training", {})
    if not after:
        _print_final(report)
        return
    rows = {"before training": before, "after training": after} if before else {"after training": after}
    head = (
        f"{count_of(after['num_queries'], 'query', 'queries')}, {count_of(after['num_gallery'], 'image')}, in percent"
    )
    ranks.print_main(f"\n{head}\n{format_table(rows, columns_of(list(recall_of(after))))}", result=True)
    for note in after["notes"]:
        ranks.print_main(f"note: {note}", result=True)
    if training:
        ranks.print_main(f"\n{_sentence(training, report)}")
    for name in (PAGE, CURVES):
        if (folder / name).is_file():
            ranks.print_main(f"{'report page' if name == PAGE else 'curves'}: {folder / name}")


def _print_final(report: Mapping[str, Any]) -> None:
    """Prints what a model of all classes was trained on, which has no scores."""
    data = report["trained_on_all"]
    classes, images = count_of(data["classes"], "class", "classes"), count_of(data["images"], "image")
    ranks.print_main(f"\ntrained on {images} of {classes}, all of {data['dataset']}: no scores", result=True)
    for note in data["notes"]:
        ranks.print_main(f"note: {note}", result=True)
    if report.get("training"):
        ranks.print_main(f"\n{_sentence(report['training'], report)}")


def _sentence(training: Mapping[str, float], report: Mapping[str, Any]) -> str:
    parts = [
        f"{count_of(training['steps'], 'step')} in {report['seconds']:,.0f} s",
        f"loss {training['loss_first_epoch']:.4g} in the first epoch, {training['loss_last_epoch']:.4g} in the last",
        f"{training['images_per_second']:.0f} images/s, {100 * training['data_wait_share']:.0f} % waiting for them",
    ]
    descriptions = {"alpha": "alpha", "center_similarity": "cosine of nearest centers", "density": "density"}
    parts += [f"{text} {training[name]:.3f}" for name, text in descriptions.items() if name in training]
    if chosen := report["selection"].get("epoch"):
        parts.append(f"epoch {chosen} chosen")
    if epochs := report["selection"].get("stopped_early_after"):
        patience = count_of(report["selection"]["patience"], "evaluation")
        parts.append(f"stopped early after epoch {epochs}, {patience} without a better MAP@R")
    return "; ".join(parts)
