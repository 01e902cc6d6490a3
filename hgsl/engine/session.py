"""Session of a run: folder, lock, process group and seed, from the checks of the folder to the report."""

import warnings
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
import yaml

from hgsl.common import ranks
from hgsl.common.cores import shared_cores
from hgsl.common.files import read_json
from hgsl.common.memory import named_memory_errors
from hgsl.common.random_state import seed_all
from hgsl.common.workers import named_worker_errors
from hgsl.config import Config
from hgsl.engine.distributed import process_group
from hgsl.engine.driver import Driver
from hgsl.engine.folder import extension, resume_checks, run_folder
from hgsl.engine.folder.checkpoint import load_state
from hgsl.engine.folder.environment import environment
from hgsl.engine.runtime import Runtime, agree_on_precision, build_runtime
from hgsl.engine.trackers.protocol import TrackedRun
from hgsl.engine.trackers.tracking import score_rows, tracking

MEMORY_ADVICE = (
    "lower train.batch_size, or raise train.accumulate, which divides a batch; model.checkpointing and a smaller "
    "data.image_size need less memory too. --resume continues from the last save"
)
WORKER_ADVICE = "--resume continues from the last save, a smaller data.workers needs less memory"


class Run(Protocol):
    """A run with data and model built, and nothing written yet."""

    driver: Driver

    def train(self, saved: dict[str, Any] | None) -> dict[str, Any]:
        """Trains from the beginning, or from the state ``saved``, writes the results and returns the report."""


def run_in_folder(
    config: Config,
    folder: Path,
    build: Callable[[Runtime], Run],
    print_report: Callable[[Path, dict[str, Any]], None],
    *,
    overwrite: bool,
    resume: bool,
    extend: bool = False,
) -> dict[str, Any]:
    """Builds a run and trains it in ``folder``; see :func:`hgsl.engine.run.train`.

    Nothing is written before ``build`` returns, so that invalid data or settings leave the folder unchanged.

    Args:
        config: The settings.
        folder: The run folder.
        build: Builds data and model.
        print_report: Prints the report of a run that is already finished.
        overwrite: Whether an earlier run there may be replaced.
        resume: Continue from the last saved state, or start if there is none.
        extend: Train a finished run on, from its last state.
    """
    if extend:
        extension.check(folder, config)
    else:
        resume_checks.check(folder, config, overwrite=overwrite, resume=resume)
        if resume:
            run_folder.check_single(folder)
    if resume and not extend and (finished := run_folder.finished_report(folder)):
        ranks.print_main(f"{folder} is finished:")
        print_report(folder, finished)
        return finished
    runtime = build_runtime(config)
    if runtime.device.type == "cpu" and (warning := shared_cores(torch.get_num_threads())):
        warnings.warn(warning, stacklevel=2)
    with ExitStack() as stack:
        runtime = replace(runtime, device=stack.enter_context(process_group(runtime.device)))
        runtime = agree_on_precision(runtime)
        stack.enter_context(named_memory_errors(MEMORY_ADVICE))
        seed_all(config.run.seed)
        run = build(runtime)
        if ranks.is_main():
            stack.enter_context(run_folder.locked(folder))
            run_folder.check_space(folder, run.driver.bytes_on_disk())
            if extend:
                extension.begin(folder, config)
            elif not resume:
                run_folder.create(folder, config, environment(), overwrite=overwrite)
            record_split = run.driver.problem.record_split
            if record_split and not (folder / run_folder.SPLIT).is_file():
                record_split(folder)
        saved = _saved_state(folder) if resume or extend else None
        if ranks.is_main():
            tracked = _tracked(run, config, folder, saved)
            run.driver.tracking = stack.enter_context(tracking(config.run.trackers, tracked))
        with named_worker_errors(WORKER_ADVICE), runtime.float32_products():
            report = run.train(saved)
        run.driver.tracking.complete(folder, score_rows(report))
        return report


def _tracked(run: Run, config: Config, folder: Path, saved: dict[str, Any] | None) -> TrackedRun:
    """The facts of the run for its trackers, and the step from which it continues."""
    facts = {"split_hash": run.driver.problem.split, **environment()}
    if (folder / run_folder.ENVIRONMENT).is_file():  # that of the start
        facts |= read_json(folder / run_folder.ENVIRONMENT, "the environment of a run")
    step = run.driver.steps_before(saved["stage"]) + saved["train"]["step"] if saved else 0
    return TrackedRun(folder, yaml.safe_load(config.to_yaml()), facts, step)


def _saved_state(folder: Path) -> dict[str, Any] | None:
    path = folder / run_folder.STATE
    if path.is_file():
        return load_state(path)
    ranks.print_main(f"no state in {folder}, the run stopped before its first save: it starts from the beginning")
    return None
