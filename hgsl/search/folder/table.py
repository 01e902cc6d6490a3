"""``images.N.jsonl``: the images of an index, a line per group of rows that was appended."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hgsl.common.errors import InputError
from hgsl.common.paths import is_inside
from hgsl.search.folder.record import REBUILD
from hgsl.search.stores.protocol import ImageFile, ImageRow, Value

SEAL = b',"sha256":"'
Columns = tuple[list[int], list[str], list[int], list[int], list[str | None]]


@dataclass
class ImageTable:
    """The rows of an index, column by column; row i has vector i.

    Attributes:
        numbers: The number of each image, which it keeps until it changes.
        paths, sizes, times, labels: Of each row; a label may be None.
        values: Column of the table of labels -> value of each row.
        blocks: Number of rows and checksum of the vectors of each line.
        removed: Rows that are no longer part of the index.
        broken: Image file -> why it could not be read; these have no row.
    """

    numbers: list[int] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    times: list[int] = field(default_factory=list)
    labels: list[str | None] = field(default_factory=list)
    values: dict[str, list[Value]] = field(default_factory=dict)
    blocks: list[tuple[int, str]] = field(default_factory=list)
    removed: set[int] = field(default_factory=set)
    broken: dict[ImageFile, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.numbers)

    def row(self, position: int) -> ImageRow:
        """The image at a row."""
        file = ImageFile(self.paths[position], self.sizes[position], self.times[position])
        present = {name: column[position] for name, column in self.values.items() if column[position] is not None}
        return ImageRow(file, self.labels[position], present)

    def live(self) -> NDArray[np.int64]:
        """The rows that are part of the index, ascending."""
        mask = np.ones(len(self), dtype=bool)
        mask[list(self.removed)] = False
        return np.flatnonzero(mask)

    def append(self, numbers: Sequence[int], rows: Sequence[ImageRow]) -> None:
        """Appends rows with these numbers."""
        files = [row.file for row in rows]
        names = {name for row in rows for name in row.values}
        self._extend(
            list(numbers),
            [file.path for file in files],
            [file.size for file in files],
            [file.mtime_ns for file in files],
            [row.label for row in rows],
            {name: [row.values.get(name) for row in rows] for name in names},
        )

    def append_columns(self, content: Mapping[str, Any]) -> None:
        """Appends the rows of a line.

        Raises:
            KeyError, TypeError, ValueError, IndexError: It is damaged.
        """
        names = [str(name) for name in content["label_names"]]
        columns: Columns = (
            [int(number) for number in content["numbers"]],
            [str(path) for path in content["paths"]],
            [int(size) for size in content["sizes"]],
            [int(time) for time in content["times"]],
            [names[label] if label >= 0 else None for label in content["labels"]],
        )
        values = {str(name): [_value(value) for value in column] for name, column in content["values"].items()}
        lengths = [len(column) for column in columns] + [len(column) for column in values.values()]
        if len(set(lengths)) > 1:
            raise ValueError(f"columns of {', '.join(map(str, lengths))} rows")
        self._extend(*columns, values)
        self.blocks.append((len(columns[0]), str(content["checksum"])))

    def _extend(
        self,
        numbers: list[int],
        paths: list[str],
        sizes: list[int],
        times: list[int],
        labels: list[str | None],
        values: dict[str, list[Value]],
    ) -> None:
        before, count = len(self), len(numbers)
        self.numbers += numbers
        self.paths += paths
        self.sizes += sizes
        self.times += times
        self.labels += labels
        for name in {*self.values, *values}:
            self.values.setdefault(name, [None] * before).extend(values.get(name, [None] * count))


def row_line(numbers: Sequence[int], rows: Sequence[ImageRow], model: str, checksum: str) -> bytes:
    """The line for rows that are appended.

    Args:
        numbers: Of the images.
        rows: The images.
        model: Fingerprint of the model of their vectors.
        checksum: Of their vectors.
    """
    names = sorted({row.label for row in rows if row.label is not None})
    code_of: dict[str | None, int] = {None: -1, **{name: i for i, name in enumerate(names)}}
    columns = sorted({name for row in rows for name in row.values})
    content = {
        "model": model,
        "checksum": checksum,
        "numbers": list(numbers),
        "paths": [row.file.path for row in rows],
        "sizes": [row.file.size for row in rows],
        "times": [row.file.mtime_ns for row in rows],
        "labels": [code_of[row.label] for row in rows],
        "label_names": names,
        "values": {name: [row.values.get(name) for row in rows] for name in columns},
    }
    return sealed_line(content)


def change_line(removed: Sequence[int], broken: Mapping[ImageFile, str]) -> bytes:
    """The line for rows that are removed, and for the images that cannot be read at present."""
    return sealed_line({"removed": list(removed), "broken": [[*image, reason] for image, reason in broken.items()]})


def read_table(path: Path, size: int) -> ImageTable:
    """Reads the first ``size`` bytes of the file.

    Raises:
        FileNotFoundError: It does not exist.
        InputError: It is damaged, or lists a path outside the image folder.
    """
    content = _read_bytes(path, size)
    if len(content) < size or not all(is_intact(line) for line in content.splitlines()):
        raise InputError(f"{path} is damaged: {REBUILD}")
    table = ImageTable()
    for number, line in enumerate(content.splitlines(), 1):
        try:
            apply_line(table, line)
        except (KeyError, TypeError, ValueError, IndexError, RecursionError) as error:
            if isinstance(error, InputError):
                raise
            detail = f"line {number}: {type(error).__name__}: {error}"
            raise InputError(f"{path} is damaged ({detail}): {REBUILD}") from None
    for image in table.paths:
        if not is_inside(image):
            raise InputError(f"{path} lists {image!r}, which is not inside the image folder: it was tampered with")
    return table


def read_tail(path: Path, start: int) -> list[bytes]:
    """The complete lines after the first ``start`` bytes; none if the file does not exist."""
    try:
        content = path.read_bytes()[start:]
    except FileNotFoundError:
        return []
    return [line for line in content.splitlines(keepends=True) if line.endswith(b"\n")]


def is_intact(line: bytes) -> bool:
    """Whether a line is as it was written."""
    content, _, checksum = line.rstrip(b"\n").rpartition(SEAL)
    return hashlib.sha256(content).hexdigest().encode() == checksum.removesuffix(b'"}')


def sealed_line(content: Mapping[str, Any]) -> bytes:
    """A line with its own checksum as the last entry."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()[:-1]
    return text + SEAL + hashlib.sha256(text).hexdigest().encode() + b'"}\n'


def apply_line(table: ImageTable, line: bytes) -> str | None:
    """Adds the contents of a line to the table; returns the model of its vectors, or None for a change.

    Raises:
        KeyError, TypeError, ValueError, IndexError: The line is damaged.
    """
    content = json.loads(line)
    if "removed" in content:
        removed = [int(row) for row in content["removed"]]
        if removed and not 0 <= min(removed) <= max(removed) < len(table):
            raise ValueError(f"removes a row that is not in the table of {len(table)}")
        table.removed.update(removed)
        table.broken = {ImageFile(str(p), int(s), int(t)): str(reason) for p, s, t, reason in content["broken"]}
        return None
    table.append_columns(content)
    return str(content["model"])


def _value(value: Any) -> Value:
    return value if value is None or isinstance(value, str) else float(value)


def _read_bytes(path: Path, size: int) -> bytes:
    with path.open("rb") as file:
        return file.read(size)
