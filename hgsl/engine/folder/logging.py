"""Metrics of a run, as JSON lines and as TensorBoard event files."""

import json
import os
from pathlib import Path
from types import TracebackType
from typing import Self

from torch.utils.tensorboard import SummaryWriter

from hgsl.common.disk import named_disk_errors
from hgsl.common.errors import InputError
from hgsl.common.files import write_text
from hgsl.engine.folder.run_folder import BOARD, METRICS


class MetricLog:
    """Appends one JSON object per record to ``metrics.jsonl``, and the same numbers to TensorBoard's files.

    Args:
        folder: The run folder.
        keep_steps: Records of later steps are removed, so that a resumed run does not write a step twice.
    """

    def __init__(self, folder: Path, keep_steps: int | None = None) -> None:
        self._path = folder / METRICS
        if keep_steps is not None and self._path.is_file():
            _cut(self._path, keep_steps)
        self._lines = self._path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(folder / BOARD), purge_step=None if keep_steps is None else keep_steps + 1)

    def write(self, step: int, **values: float) -> None:
        """Writes one record; every value is a finite number."""
        with named_disk_errors(self._path):
            json.dump({"step": step, **values}, self._lines, allow_nan=False)
            self._lines.write("\n")
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def flush(self) -> None:
        """Flushes everything written so far to disk."""
        with named_disk_errors(self._path):
            self._lines.flush()
            os.fsync(self._lines.fileno())
        self._board.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with named_disk_errors(self._path):
            self._lines.close()
        self._board.close()


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


def _cut(path: Path, keep_steps: int) -> None:
    records = [record for record in read_metrics(path) if record["step"] <= keep_steps]
    write_text(path, "".join(json.dumps(record) + "\n" for record in records))
