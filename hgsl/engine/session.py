"""Frame of every run: its folder, device, processes and seed, from a free or resumed folder to the report."""

import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from hgsl.common import ranks
from hgsl.common.errors import InputError
from hgsl.common.random_state import seed_all
from hgsl.config import Config
from hgsl.engine.distributed import process_group
from hgsl.engine.driver import Driver
from hgsl.engine.folder import run_folder
from hgsl.engine.folder.checkpoint import load_state
from hgsl.engine.folder.environment import environment
from hgsl.engine.runtime import Runtime, build_runtime


class Run(Protocol):
    """A run whose data and model have been read; nothing is written yet."""

    driver: Driver

    def to_the_end(self, saved: dict[str, Any] | None) -> dict[str, Any]:
        """Trains from the beginning, or from the state ``saved``, writes the results and returns the report."""


def run_in_folder(
    config: Config,
    folder: Path,
    build: Callable[[Runtime], Run],
    print_report: Callable[[Path, dict[str, Any]], None],
    *,
    overwrite: bool,
    resume: bool,
) -> dict[str, Any]:
    """Builds a run and takes it to its end in ``folder``; see :func:`hgsl.engine.run.train`.

    Nothing is written until ``build`` has returned, so that a mistake in data or settings leaves the folder as it was.

    Args:
        config: The settings.
        folder: The run folder.
        build: Reads data and model.
        print_report: Prints the report of a finished run, which ``resume`` does not repeat.
        overwrite: Whether an earlier run there may be replaced.
        resume: Go on from the last saved state, or from the beginning if there is none.
    """
    run_folder.check(folder, config, overwrite=overwrite, resume=resume)
    if resume and (finished := run_folder.finished_report(folder)):
        if changed := run_folder.difference(folder, config):
            ranks.print_main(f"note: {changed}: what follows is of that run")
        ranks.print_main(f"{folder} is finished:")
        print_report(folder, finished)
        return finished
    runtime = build_runtime(config)
    with ExitStack() as stack:
        runtime = replace(runtime, device=stack.enter_context(process_group(runtime.device)))
        seed_all(config.run.seed)
        run = build(runtime)
        if ranks.is_main():
            stack.enter_context(run_folder.locked(folder))
            run_folder.check_space(folder, run.driver.bytes_on_disk())
            if not resume:
                run_folder.create(folder, config, environment(), overwrite=overwrite)
        saved = _saved_state(folder) if resume else None
        with _killed_workers_named():
            return run.to_the_end(saved)


def _saved_state(folder: Path) -> dict[str, Any] | None:
    path = folder / run_folder.STATE
    if path.is_file():
        return load_state(path)
    ranks.print_main(f"no state in {folder}, the run stopped before its first save: it starts from the beginning")
    return None


@contextmanager
def _killed_workers_named() -> Iterator[None]:
    """Turns the errors of a loader whose worker process was killed into one that says so."""
    try:
        yield
    except (RuntimeError, EOFError, ConnectionError) as error:
        if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
            raise
        # The loader's handler would raise again for each of its other workers, while they are being shut down.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        raise InputError(
            "a worker process that reads images was killed, often by the system for lack of memory: "
            "--resume goes on from the last save, a smaller data.workers needs less memory"
        ) from None
