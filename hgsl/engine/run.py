"""Training of an embedder, from its settings to its report."""

import copy
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hgsl.common import ranks
from hgsl.common.errors import InputError
from hgsl.common.files import write_json
from hgsl.config import Config
from hgsl.engine.callbacks import Callback, check_callbacks
from hgsl.engine.driver import Driver
from hgsl.engine.evaluation import Evaluation
from hgsl.engine.folder import extension, run_folder
from hgsl.engine.folder.logging import read_metrics
from hgsl.engine.folder.summary import print_summary, training_facts, write_queries
from hgsl.engine.loop.train_state import TrainState
from hgsl.engine.loop.validation import CHOSEN_ON_TEST, Validation
from hgsl.engine.parts.masking import mask_backbone
from hgsl.engine.parts.whitening import MEAN_IMAGES
from hgsl.engine.retrieval import Retrieval
from hgsl.engine.runtime import Runtime
from hgsl.engine.session import run_in_folder
from hgsl.engine.stages import Stage, training_stages
from hgsl.models import Embedder, save_embedder
from hgsl.models.lora import merge_lora

PAGE_QUERIES = 20_000  # the page of more queries would have tens of megabytes


def train(
    config: Config,
    folder: str | os.PathLike[str] | None = None,
    *,
    overwrite: bool = False,
    resume: bool = False,
    extend: bool = False,
    callbacks: Sequence[Callback] = (),
) -> dict[str, Any]:
    """Trains, evaluates on the test classes before and after, and writes the run folder.

    Nothing is written before data, model and folder have been checked. Under torchrun every process calls this, and
    the first one prints and writes.

    Args:
        config: The settings.
        folder: The run folder; None for ``run.dir`` of the settings, or else ``runs/`` and the name of the data set.
        overwrite: Whether an earlier run there may be replaced.
        resume: Continue the run in ``folder`` from its last saved state; a finished run is only reported.
        extend: Train the finished run in ``folder`` on to ``train.epochs``, from its last weights and moments of the
            optimizer, with a new schedule.
        callbacks: Called after steps, after each epoch and at the end; see :class:`Callback`.

    Returns:
        The report: ``before`` and ``after`` with the scores, the settings that determine them, and the versions.

    Raises:
        InputError: Settings, data or folder are not usable.
        Stopped: A signal ended the run after its state was saved.
        Exception: A callback raised it; the state was saved before.
    """
    if not isinstance(config, Config):
        raise InputError(f"config: expected settings such as hgsl.load_config returns, found {type(config).__name__}")
    check_callbacks(callbacks)
    path = Path(folder or config.run.dir or Path("runs") / config.data.name)
    return run_in_folder(
        config,
        path,
        lambda runtime: TrainingRun(config, path, runtime, resume=resume, extend=extend, callbacks=callbacks),
        print_summary,
        overwrite=overwrite,
        resume=resume,
        extend=extend,
    )


class TrainingRun:
    """Plain training: one stage, with masks if the settings have them."""

    def __init__(
        self,
        config: Config,
        folder: Path,
        runtime: Runtime,
        *,
        resume: bool,
        extend: bool = False,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        started = time.perf_counter()
        self.config, self.folder = config, folder
        self.retrieval = Retrieval(config, runtime, folder if resume or extend else None)
        model = self.retrieval.model
        self.masks = mask_backbone(model, config.sparsify)
        self.is_final = config.data.test_share == 0
        if not self.is_final:
            self.retrieval.images("test")  # raises before anything is written if there are no test images
        ranks.print_main(
            f"{config.model.backbone}, {model.architecture['pooling']}, {model.embedding_size}-d, on {runtime}"
        )
        extended_after = extension.extended_after(folder, extend) if resume or extend else []
        self.extended_after = [epoch for epoch in extended_after if epoch < config.train.epochs]
        self.validation = self._validation()
        self.driver = Driver(
            config,
            folder,
            runtime,
            self.retrieval.problem(measure_before=config.eval.before and not self.is_final),
            training_stages(config, self.extended_after),
            self.masks,
            self._after_epoch,
            started,
            lambda state: self.validation is not None and self.validation.is_over(state),
            callbacks,
        )

    def train(self, saved: dict[str, Any] | None) -> dict[str, Any]:
        """Trains from the beginning, or from ``saved``, and returns the report."""
        driver = self.driver
        driver.run(saved)
        if self.validation:
            self.validation.restore_best(driver.state)
        model = merge_lora(driver.finished_model()[0])
        self.retrieval.whiten(model)
        evaluation = None if self.is_final else self.retrieval.evaluation(model, "test")
        records = read_metrics(self.folder / run_folder.METRICS) if ranks.is_main() else []
        report = {
            "before": driver.before,
            "after": self._with_notes(evaluation.summary()) if evaluation else {},
            **({} if evaluation else {"trained_on_all": self._training_counts()}),
            "selection": self._selection(),
            **({"extended_after": self.extended_after} if self.extended_after else {}),
            "training": training_facts(records, self.retrieval.steps_per_epoch),
            **driver.metadata(),
        }
        if ranks.is_main():
            self._write(model, report, records, evaluation)
        print_summary(self.folder, report)
        for callback in self.driver.callbacks if ranks.is_main() else ():
            callback.on_end(copy.deepcopy(report))
        return report

    def embedding_count(self) -> int:
        """Returns the number of images that are embedded besides the steps: for scores, and for what is fitted."""
        split, config = self.retrieval.manifest.split, self.config
        train, val, test = (int((split == name).sum()) for name in ("train", "val", "test"))
        if config.train.mode == "head":
            return train + val + test
        count = self.driver.problem.start_size + test
        if self.validation:
            evaluations = -(-config.train.epochs // self.validation.every)
            count += evaluations * (val if self.validation.split == "val" else test)
        if config.eval.whiten is not None:
            count += min(train, MEAN_IMAGES) if config.eval.whiten == "mean" else train
        return count

    def _write(
        self, model: Embedder, report: dict[str, Any], records: list[dict[str, float]], evaluation: Evaluation | None
    ) -> None:
        save_embedder(model, self.folder)
        if evaluation:
            self._write_evaluation(report, records, evaluation)
        elif self.config.eval.page:
            ranks.print_main(f"no {run_folder.PAGE} and no {run_folder.CURVES}: they show scores, and there are none")
        write_json(self.folder / run_folder.REPORT, report)

    def _write_evaluation(
        self, report: dict[str, Any], records: list[dict[str, float]], evaluation: Evaluation
    ) -> None:
        write_queries(self.folder, evaluation.result)
        queries = evaluation.result.num_queries
        if self.config.eval.page and queries > PAGE_QUERIES:
            ranks.print_main(f"no {run_folder.PAGE} for {queries:,} queries: hgsl eval --html writes it")
        elif self.config.eval.page:
            from hgsl.engine.folder.page import write_page  # imports scikit-learn, which takes seconds

            write_page(self.folder, report, records, evaluation)

    def _after_epoch(self, stage: Stage, epoch: int, state: TrainState) -> dict[str, float]:
        numbers = {}
        if (similarity := self.retrieval.center_similarity()) is not None:
            numbers["center_similarity"] = similarity
        if self.masks:
            numbers |= {"density": self.masks.density(), "temperature": self.masks.temperature}
        scores = self._validate(stage, epoch, state)
        return {**numbers, **scores}

    def _validate(self, stage: Stage, epoch: int, state: TrainState) -> dict[str, float]:
        if self.validation is None:
            return {}
        return self.validation.after_epoch(stage.epochs_before + epoch + 1, self.config.train.epochs, state)

    def _validation(self) -> Validation | None:
        """The evaluations during training: of the split that chooses the epoch, or of validation images if any."""
        train, every = self.config.train, self.config.eval.every
        split = "test" if train.select == "best_on_test" else "val"
        if not every or not np.any(self.retrieval.manifest.split == split):
            return None
        return Validation(
            lambda model: self.retrieval.scores(model, split),  # type: ignore[arg-type]
            split,
            self.folder,
            every,
            keeps_best=train.select != "last",
            patience=train.patience,
        )

    def _selection(self) -> dict[str, Any]:
        """The entry of the report: how the epoch was chosen, and whether training stopped early."""
        best, train = self.driver.state.best, self.config.train
        chosen: dict[str, Any] = {key: best[key] for key in ("epoch", "score") if key in best}
        epochs = len(self.driver.history)
        stopped = {"stopped_early_after": epochs, "patience": train.patience} if epochs < train.epochs else {}
        return {"epoch_chosen": train.select, **chosen, **stopped}

    def _training_counts(self) -> dict[str, Any]:
        """The entry of the report of a final model: what it was trained on, in place of scores."""
        images = self.retrieval.train_set
        manifest = images.manifest
        notes = [*manifest.notes, *self._extension_notes()]
        counts = {"classes": images.num_classes, "images": len(images), "split_hash": manifest.split_hash}
        return {"dataset": manifest.name, "protocol": manifest.protocol, **counts, "notes": notes}

    def _extension_notes(self) -> list[str]:
        if not self.extended_after:
            return []
        epochs = " and ".join(map(str, self.extended_after))
        return [f"trained on after epoch {epochs}, with a new learning-rate schedule (--extend)"]

    def _with_notes(self, scores: dict[str, Any]) -> dict[str, Any]:
        """The scores after training, with what must be known to read them."""
        notes = self._extension_notes()
        if self.config.train.select == "best_on_test":
            notes = [CHOSEN_ON_TEST, *notes]
        return {**scores, "notes": [*scores["notes"], *notes]}
