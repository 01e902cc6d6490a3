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
from hgsl.engine.folder import run_folder
from hgsl.engine.folder.checkpoint import load_state
from hgsl.engine.runtime import Runtime, build_runtime


class Run(Protocol):
    """A run whose data and model have been read; nothing is written yet."""

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
    if resume and (finished := run_folder.finished_report(folder, config)):
        ranks.print_main(f"{folder} is finished:")
        print_report(folder, finished)
        return finished
    if resume:
        run_folder.check_same(folder, config)
    else:
        run_folder.check_free(folder, overwrite=overwrite)
    runtime = build_runtime(config)
    with ExitStack() as stack:
        runtime = replace(runtime, device=stack.enter_context(process_group(runtime.device)))
        seed_all(config.run.seed)
        run = build(runtime)
        if ranks.is_main():
            stack.enter_context(run_folder.locked(folder))
            if not resume:
                run_folder.create(folder, config, overwrite=overwrite)
        saved = load_state(folder / run_folder.STATE) if resume else None
        with _killed_workers_named():
            return run.to_the_end(saved)


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
