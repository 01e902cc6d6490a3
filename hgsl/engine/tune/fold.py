"""Training on all but one fold of the training classes, measured on that fold after every epoch."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from hgsl.common.errors import InputError
from hgsl.common.files import write_json
from hgsl.config import Config
from hgsl.data import Manifest
from hgsl.engine.driver import Driver
from hgsl.engine.folder import run_folder
from hgsl.engine.loop.train_state import TrainState
from hgsl.engine.loop.validation import CRITERION
from hgsl.engine.retrieval import Retrieval
from hgsl.engine.runtime import Runtime
from hgsl.engine.session import run_in_folder
from hgsl.engine.stages import Stage, training_stages

AfterEpoch = Callable[[int, float], None]  # (epoch from 0, MAP@R)


def fold_config(config: Config, fold: int) -> Config:
    """Returns the settings of a training whose validation classes are fold ``fold`` of the training classes."""
    return replace(
        config,
        data=replace(config.data, val_share=0.0, val_fold=fold),
        train=replace(config.train, select="last", patience=None),
        # Trials that a tracker followed would be hundreds of runs; the study has tables and a database of its own.
        run=replace(config.run, trackers=[name for name in config.run.trackers if name == "tensorboard"]),
        eval=replace(config.eval, before=False, page=False),
    )


def train_fold(config: Config, folder: Path, after_epoch: AfterEpoch) -> list[float]:
    """Trains in ``folder``, from where an earlier process was stopped, and returns MAP@R after every epoch.

    Args:
        config: Settings as from :func:`fold_config`.
        folder: The folder of this training.
        after_epoch: Called for every epoch, also for those that an earlier process trained; may raise to end it.

    Raises:
        InputError: Settings or data are not usable, or training diverged.
    """
    started_before = (folder / run_folder.CONFIG).is_file()
    report = run_in_folder(
        config,
        folder,
        lambda runtime: FoldRun(config, folder, runtime, after_epoch),
        lambda _, finished: _report_again(finished["curve"], after_epoch),
        overwrite=False,
        resume=started_before,
    )
    curve: list[float] = report["curve"]
    return curve


class FoldRun:
    """Training that sees no image of the evaluated classes: their rows are removed from the manifest.

    Args:
        config: Settings as from :func:`fold_config`.
        folder: The folder of this training.
        runtime: Device and precision.
        after_epoch: See :func:`train_fold`.
    """

    def __init__(self, config: Config, folder: Path, runtime: Runtime, after_epoch: AfterEpoch) -> None:
        started = time.perf_counter()
        self.folder, self.after_epoch = folder, after_epoch
        self.retrieval = Retrieval(config, runtime)
        self.retrieval.manifest = without_evaluated(self.retrieval.manifest)
        problem = self.retrieval.problem(measure_before=False)
        self.driver = Driver(
            config, folder, runtime, problem, training_stages(config), None, self._after_epoch, started
        )

    def train(self, saved: dict[str, Any] | None) -> dict[str, Any]:
        """Trains from the beginning, or from ``saved``, and writes and returns the curve."""
        if saved:
            _report_again([record[CRITERION] for record in saved["history"]], self.after_epoch)
        self.driver.run(saved)
        report = {"curve": [record[CRITERION] for record in self.driver.history], **self.driver.metadata()}
        write_json(self.folder / run_folder.REPORT, report)
        return report

    def _after_epoch(self, stage: Stage, epoch: int, state: TrainState) -> dict[str, float]:
        score = float(self.retrieval.scores(state.final_model, "val")[CRITERION])
        self.after_epoch(epoch, score)
        return {CRITERION: score}


def _report_again(curve: Sequence[float], after_epoch: AfterEpoch) -> None:
    for epoch, score in enumerate(curve):
        after_epoch(epoch, score)


def without_evaluated(manifest: Manifest) -> Manifest:
    """Returns the training and validation rows of a manifest, after a check that no class of theirs is evaluated.

    Raises:
        InputError: A class is in two of the splits, so that settings would be fitted to evaluated classes.
    """
    classes = {split: set(manifest.labels[manifest.split == split].tolist()) for split in ("train", "val", "test")}
    for first, second in (("val", "test"), ("train", "test"), ("train", "val")):
        if shared := classes[first] & classes[second]:
            raise InputError(
                f"{manifest.name}: class {manifest.class_names[min(shared)]!r} is both in {first} and in {second}, so "
                "settings would be chosen on classes that are trained on or evaluated: use data.protocol zero-shot"
            )
    return manifest.take(np.flatnonzero(manifest.split != "test"))
