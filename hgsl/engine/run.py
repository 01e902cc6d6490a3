"""Training of an embedder, from its settings to its report."""

import time
from pathlib import Path
from typing import Any

from hgsl.common import ranks
from hgsl.common.files import write_json
from hgsl.config import Config
from hgsl.engine.driver import Driver
from hgsl.engine.evaluation import Evaluation
from hgsl.engine.folder import run_folder
from hgsl.engine.folder.logging import read_metrics
from hgsl.engine.folder.summary import print_summary, training_facts, write_queries
from hgsl.engine.loop.selection import BestEpoch
from hgsl.engine.loop.train_state import TrainState
from hgsl.engine.parts.masking import mask_backbone
from hgsl.engine.retrieval import Retrieval
from hgsl.engine.runtime import Runtime
from hgsl.engine.session import run_in_folder
from hgsl.engine.stages import Stage, training_stages
from hgsl.models import Embedder, save_embedder
from hgsl.models.lora import merge_lora

PAGE_QUERIES = 20_000  # the page of more queries would have tens of megabytes


def train(config: Config, folder: Path, *, overwrite: bool = False, resume: bool = False) -> dict[str, Any]:
    """Trains, evaluates on the test classes before and after, and writes the run folder.

    Nothing is written before data, model and folder have been checked. Under torchrun every process calls this, and
    the first one prints and writes.

    Args:
        config: The settings.
        folder: The run folder.
        overwrite: Whether an earlier run there may be replaced.
        resume: Continue the run in ``folder`` from its last saved state; a finished run is only reported.

    Returns:
        The report: ``before`` and ``after`` with the scores, the settings that determine them, and the versions.

    Raises:
        InputError: Settings, data or folder are not usable.
        Stopped: A signal ended the run after its state was saved.
    """
    return run_in_folder(
        config,
        folder,
        lambda runtime: TrainingRun(config, folder, runtime, resume=resume),
        print_summary,
        overwrite=overwrite,
        resume=resume,
    )


class TrainingRun:
    """Plain training: one stage, with masks if the settings have them."""

    def __init__(self, config: Config, folder: Path, runtime: Runtime, *, resume: bool) -> None:
        started = time.perf_counter()
        self.config, self.folder = config, folder
        self.retrieval = Retrieval(config, runtime, folder if resume else None)
        model = self.retrieval.model
        self.masks = mask_backbone(model, config.sparsify)
        self.retrieval.images("test")  # raises before anything is written if there are no test images
        ranks.print_main(
            f"{config.model.backbone}, {model.architecture['pooling']}, {model.embedding_size}-d, on {runtime}"
        )
        self.driver = Driver(
            config,
            folder,
            runtime,
            self.retrieval.problem(measure_before=config.eval.before),
            training_stages(config),
            self.masks,
            self._after_epoch,
            started,
        )
        self.best = self._best_epoch()

    def train(self, saved: dict[str, Any] | None) -> dict[str, Any]:
        """Trains from the beginning, or from ``saved``, and returns the report."""
        driver = self.driver
        driver.run(saved)
        if self.best:
            self.best.restore(driver.state)
        model = merge_lora(driver.finished_model()[0])
        self.retrieval.whiten(model)
        evaluation = self.retrieval.evaluation(model, "test")
        records = read_metrics(self.folder / run_folder.METRICS) if ranks.is_main() else []
        report = {
            "before": self._with_notes(driver.before),
            "after": self._with_notes(evaluation.summary()),
            "selection": {"epoch_chosen": self.config.train.select, **driver.state.best},
            "training": training_facts(records, self.retrieval.steps_per_epoch),
            **driver.metadata(),
        }
        if ranks.is_main():
            self._write(model, report, records, evaluation)
        print_summary(self.folder, report)
        return report

    def _write(
        self, model: Embedder, report: dict[str, Any], records: list[dict[str, float]], evaluation: Evaluation
    ) -> None:
        save_embedder(model, self.folder)
        write_queries(self.folder, evaluation.result)
        queries = evaluation.result.num_queries
        if self.config.eval.page and queries > PAGE_QUERIES:
            ranks.print_main(f"no {run_folder.PAGE} for {queries:,} queries: hgsl eval --html writes it")
        elif self.config.eval.page:
            from hgsl.engine.folder.page import write_page  # imports scikit-learn, which takes seconds

            write_page(self.folder, report, records, evaluation)
        write_json(self.folder / run_folder.REPORT, report)

    def _after_epoch(self, stage: Stage, epoch: int, state: TrainState) -> dict[str, float]:
        numbers = {}
        if (similarity := self.retrieval.center_similarity()) is not None:
            numbers["center_similarity"] = similarity
        if self.masks:
            numbers |= {"density": self.masks.density(), "temperature": self.masks.temperature}
        return {**numbers, **(self.best(epoch, state) if self.best else {})}

    def _best_epoch(self) -> BestEpoch | None:
        select = self.config.train.select
        if select == "last":
            return None
        split = "test" if select == "best_on_test" else "val"
        return BestEpoch(lambda model: self.retrieval.scores(model, split), self.folder)  # type: ignore[arg-type]

    def _with_notes(self, scores: dict[str, Any]) -> dict[str, Any]:
        if scores and self.config.train.select == "best_on_test":
            note = "the epoch was chosen on these images, so the score is too high"
            return {**scores, "notes": [*scores["notes"], note]}
        return scores
