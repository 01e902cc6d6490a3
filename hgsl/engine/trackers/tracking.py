"""Tracking of a run by every tracker of its settings, none of which can end it."""

import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from hgsl.common.errors import InputError, first_line
from hgsl.common.files import read_json, write_json
from hgsl.engine.folder import run_folder
from hgsl.engine.trackers import TRACKERS
from hgsl.engine.trackers.protocol import Record, Scores, TrackedRun, Tracker

SECONDS, RECORDS = 10.0, 50  # after which records are passed on, whichever comes first
FILES = (
    *(run_folder.CONFIG, run_folder.SPLIT, run_folder.ENVIRONMENT, run_folder.METRICS, run_folder.REPORT),
    *(run_folder.CURVES, run_folder.PAGE, run_folder.COSTS, run_folder.LAYERS),
)


class Tracking:
    """The trackers of a run; one that fails is left out with a warning."""

    def __init__(self, trackers: Mapping[str, Tracker] | None = None) -> None:
        self._trackers = dict(trackers or {})
        self._records: list[Record] = []
        self._sent = time.monotonic()

    def start(self, name: str, run: TrackedRun) -> str | None:
        """Starts the tracker ``name`` of ``TRACKERS``, and returns the key by which a resumed run continues it.

        Raises:
            InputError: It cannot be started.
        """
        tracker = TRACKERS[name]()
        try:
            key = tracker.start(run)
        except InputError:
            raise
        except Exception as error:
            raise InputError(
                f"run.trackers {name} cannot be started ({first_line(error)}): leave it out, or see docs/training.md"
            ) from error
        self._trackers[name] = tracker
        return key

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Adds the numbers of a step, which are passed on from time to time."""
        self._records.append((step, values))
        if len(self._records) >= RECORDS or time.monotonic() - self._sent > SECONDS:
            self.flush()

    def flush(self) -> None:
        """Passes on the numbers that are held back."""
        records, self._records, self._sent = self._records, [], time.monotonic()
        if records:
            self._each(lambda tracker: tracker.log(records))

    def complete(self, folder: Path, scores: Scores) -> None:
        """Passes on the files and the scores of a finished run, and ends the tracking."""
        self.flush()
        for path in (folder / name for name in FILES):
            if path.is_file():
                self._each(lambda tracker, path=path: tracker.artifact(path))  # type: ignore[misc]
        self._end(scores)

    def interrupt(self) -> None:
        """Ends the tracking of a run that is not finished; it does nothing after :meth:`complete`."""
        self.flush()
        self._end(None)

    def _end(self, scores: Scores | None) -> None:
        self._each(lambda tracker: tracker.finish(scores))
        self._trackers = {}

    def _each(self, action: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._trackers.items()):
            try:
                action(tracker)
            except Exception as error:
                del self._trackers[name]
                warnings.warn(
                    f"run.trackers {name} failed and is left out from here on ({first_line(error)}): the training "
                    f"continues, and {run_folder.METRICS} has all numbers",
                    stacklevel=2,
                )


@contextmanager
def tracking(names: Sequence[str], run: TrackedRun) -> Iterator[Tracking]:
    """Starts the trackers, and ends them however the context ends, also where one of them cannot be started.

    Args:
        names: Keys of ``TRACKERS``.
        run: The run; its ``key`` is read from and written to its folder.

    Raises:
        InputError: A tracker cannot be started, such as where its package is missing.
    """
    keys = _read_keys(run.folder)
    active = Tracking()
    try:
        for name in names:
            if key := active.start(name, replace(run, key=keys.get(name))):
                keys[name] = key
        if keys:
            write_json(run.folder / run_folder.TRACKERS, keys)
        yield active
    finally:
        active.interrupt()


def score_rows(report: Mapping[str, Any]) -> Scores:
    """Returns the scores of a report: before and after a training, or of a ticket search."""
    parts = {name: report.get(name) for name in ("before", "after", "scores")}
    return {
        name: {key: float(value) for key, value in part.items() if isinstance(value, float)}
        for name, part in parts.items()
        if part
    }


def _read_keys(folder: Path) -> dict[str, str]:
    path = folder / run_folder.TRACKERS
    return read_json(path, "the keys of the run's trackers") if path.is_file() else {}
