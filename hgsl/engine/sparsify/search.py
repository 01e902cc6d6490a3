"""Ticket search: rounds of training with soft masks, then training of the ticket from rewound weights.

The stages are ``round 1``, ``round 2``, ..., ``ticket``; or ``dense`` alone, trained in the same way without masks.
"""

import copy
import itertools
import math
import time
from pathlib import Path
from typing import Any

from hgsl.common import ranks
from hgsl.common.errors import InputError
from hgsl.common.files import write_json
from hgsl.config import SparsifyRunConfig
from hgsl.engine.driver import Driver
from hgsl.engine.folder import run_folder
from hgsl.engine.loop.train_state import TrainState
from hgsl.engine.parts.masking import mask
from hgsl.engine.runtime import Runtime
from hgsl.engine.session import run_in_folder
from hgsl.engine.sparsify.problems import PROBLEMS, SparsifyProblem
from hgsl.engine.sparsify.report import Measured, read_scores, save_and_measure, write_layers, write_plot
from hgsl.engine.stages import Stage, search_stages
from hgsl.sparsity.reconstruction import reconstruct

RECONSTRUCTION_IMAGES = 2000  # augmented training images from which the moments of the layers' inputs are taken


def search(config: SparsifyRunConfig, folder: Path, *, overwrite: bool = False, resume: bool = False) -> dict[str, Any]:
    """Searches a ticket, trains it, measures it, and writes the run folder.

    Args:
        config: The settings.
        folder: The run folder.
        overwrite: Whether an earlier run there may be replaced.
        resume: Continue the run in ``folder`` from its last saved state; a finished run is only reported.

    Returns:
        The report: ``scores`` on the test images, ``density``, ``layers``, ``costs``, ``history``, and the settings.

    Raises:
        InputError: Settings, data or folder are not usable.
        Stopped: A signal ended the run after its state was saved.
    """
    if ranks.launched_world_size() > 1:
        raise InputError(
            "a ticket search runs in one process: start several searches side by side, each with its own --run.dir"
        )

    return run_in_folder(
        config,
        folder,
        lambda runtime: TicketSearch(config, folder, runtime, resume=resume),
        _print_scores,
        overwrite=overwrite,
        resume=resume,
    )


class TicketSearch:
    """A ticket search and its report."""

    def __init__(self, config: SparsifyRunConfig, folder: Path, runtime: Runtime, *, resume: bool) -> None:
        started = time.perf_counter()
        settings = config.sparsify
        problem: SparsifyProblem = PROBLEMS[settings.task](config, runtime, folder if resume else None)
        self.config, self.folder, self.problem, self.runtime = config, folder, problem, runtime
        dense_run = settings.dense_run if settings.rounds else None
        dense_scores = read_scores(Path(dense_run), problem.quality) if dense_run else {}
        self.dense: Measured = (copy.deepcopy(problem.model), dense_scores)  # for comparison with the ticket
        masks = mask(problem.model, settings, problem.example, settings.include) if settings.rounds else None
        stages = search_stages(config)
        self.driver = Driver(config, folder, runtime, problem, stages, masks, self._after_epoch, started)

    def train(self, saved: dict[str, Any] | None) -> dict[str, Any]:
        """Trains all stages, or the remaining ones of the state ``saved``, and returns the report."""
        if self._reconstructs and not saved:
            self._reconstruct()
        self.driver.run(saved)
        model, masks = self.driver.finished_model()
        scores = self.problem.final(model)
        layers = masks.layers() if masks else []
        trained = (model, scores)
        costs, notes = save_and_measure(
            self.folder, self.config, self.problem, self.runtime, trained, self._scored_dense()
        )
        write_layers(self.folder, layers)
        write_plot(self.folder, self.driver.history, self.problem.curve_name)
        report: dict[str, Any] = {
            "scores": scores,
            "density": masks.density() if masks else 1.0,
            "overall_density": masks.overall_density() if masks else 1.0,
            "closed_layers": masks.closed_layers() if masks else [],
            "layers": layers,
            "costs": costs,
            "notes": notes,
            "history": self.driver.history,
            "curve": self.problem.curve_name,
            **self.driver.metadata(),
        }
        write_json(self.folder / run_folder.REPORT, report)
        _print_scores(self.folder, report)
        return report

    def embedding_count(self) -> int:
        """Returns the number of images that the network embeds, or classifies, besides the training steps."""
        settings, problem = self.config.sparsify, self.problem
        curve_points = sum(-(-stage.epochs // settings.curve_every) for stage in self.driver.stages)
        networks = 2 if settings.rounds and settings.granularity == "channel" else 1  # the ticket, and compacted
        count: int = problem.start_size + curve_points * problem.curve_size + networks * problem.final_size
        if self._reconstructs:
            count += RECONSTRUCTION_IMAGES + problem.curve_size + (0 if self.dense[1] else problem.final_size)
        return count

    @property
    def _reconstructs(self) -> bool:
        """Whether weights or channels are removed by reconstruction, and not by trained masks."""
        return self.config.sparsify.method == "reconstruction" and self.config.sparsify.rounds > 0

    def _scored_dense(self) -> Measured:
        """The dense network with its scores; one that was trained before, and then reconstructed, is scored here."""
        dense, scores = self.dense
        if self._reconstructs and not scores:
            scores = self.problem.final(dense)
        return dense, scores

    def _reconstruct(self) -> None:
        """Closes weights or channels down to the target, by reconstruction on training images."""
        masks, problem, target = self.driver.masks, self.problem, self.config.sparsify.target
        assert masks is not None
        assert target is not None
        steps = math.ceil(RECONSTRUCTION_IMAGES / self.config.train.batch_size)
        batches = itertools.islice(
            problem.batches(self.config.run.seed, 0, 1 + steps // problem.steps_per_epoch), steps
        )
        channels_last = problem.model.prefers_channels_last(self.runtime.device)
        reconstruct(
            problem.network, masks, (self.runtime.prepare(images, channels_last) for images, *_ in batches), target
        )
        score = self.problem.curve(problem.model)
        ranks.print_main(
            f"reconstruction: {100 * masks.share().item():.1f} % of the {self.config.sparsify.penalty} are left, "
            f"{self.problem.curve_name} {score:.4f}"
        )

    def _after_epoch(self, stage: Stage, epoch: int, state: TrainState) -> dict[str, float]:
        masks = self.driver.masks
        numbers = {"density": masks.density() if masks else 1.0}
        if masks and self.config.sparsify.target is not None:
            numbers["share"] = masks.share().item()
        if masks and stage.masks == "soft":
            numbers["temperature"] = masks.temperature
        if (epoch + 1) % self.config.sparsify.curve_every == 0 or epoch + 1 == stage.epochs:
            numbers["score"] = self.problem.curve(state.final_model)
        score = f", {self.problem.curve_name} {numbers['score']:.4f}" if "score" in numbers else ""
        ranks.print_main(f"{stage.name}, epoch {epoch + 1}: density {numbers['density']:.3f}{score}")
        return numbers


def _print_scores(folder: Path, report: dict[str, Any]) -> None:
    scores = {name: value for name, value in report["scores"].items() if isinstance(value, float)}
    percent = ", ".join(f"{name} {100 * value:.2f}" for name, value in scores.items())
    ranks.print_main(
        f"\n{percent}, in percent, with {100 * report['density']:.1f} % of the masked weights", result=True
    )
