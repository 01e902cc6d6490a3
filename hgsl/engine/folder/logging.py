"""Metrics of a run as JSON lines, which are passed on to its trackers."""

import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from hgsl.common.disk import named_disk_errors
from hgsl.common.errors import InputError
from hgsl.common.files import write_text
from hgsl.engine.folder.run_folder import METRICS

VALIDATION_SCORES = {"recall@1": "Recall@1", "map@r": "MAP@R"}  # of an evaluation during training, with headings


class MetricLog:
    """Appends one JSON object per record to ``metrics.jsonl``, and passes it on.

    Args:
        folder: The folder of the file.
        keep_steps: Records of later steps are removed, so that a resumed run does not write a step twice.
        pass_on: Called with step and numbers of each record.
        flush: Called when everything is flushed to disk.
    """

    def __init__(
        self,
        folder: Path,
        keep_steps: int | None = None,
        pass_on: Callable[[int, Mapping[str, float]], None] = lambda step, values: None,
        flush: Callable[[], None] = lambda: None,
    ) -> None:
        self._pass_on, self._flush = pass_on, flush
        self._path = folder / METRICS
        if keep_steps is not None and self._path.is_file():
            _cut(self._path, keep_steps)
        self._lines = self._path.open("a", encoding="utf-8")

    def write(self, step: int, **values: float) -> None:
        """Writes one record; every value is a finite number."""
        with named_disk_errors(self._path):
            json.dump({"step": step, **values}, self._lines, allow_nan=False)
            self._lines.write("\n")
        self._pass_on(step, values)

    def flush(self) -> None:
        """Flushes everything written so far to disk."""
        with named_disk_errors(self._path):
            self._lines.flush()
            os.fsync(self._lines.fileno())
        self._flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with named_disk_errors(self._path):
            self._lines.close()


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Reads ``metrics.jsonl``; an incomplete last line is ignored.

    Raises:
        InputError: A line before the last is not JSON.
    """
    records = []
    lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            records.append(json.loads(line))
        except ValueError:
            if number < len(lines):
                raise InputError(f"{path}, line {number}: not a JSON record") from None
    return records


def validation_curves(records: Iterable[Mapping[str, float]]) -> dict[str, list[tuple[float, float]]]:
    """Returns the scores of the evaluations during training: name -> (step, score) pairs."""
    curves: dict[str, list[tuple[float, float]]] = {}
    for record in records:
        for key, heading in VALIDATION_SCORES.items():
            for split in ("val", "test"):
                if (name := f"{split}/{key}") in record:
                    curves.setdefault(f"{heading} on {split}", []).append((record["step"], record[name]))
    return curves


def _cut(path: Path, keep_steps: int) -> None:
    records = [record for record in read_metrics(path) if record["step"] <= keep_steps]
    write_text(path, "".join(json.dumps(record) + "\n" for record in records))
