"""Encoded images in the rows of Parquet files, read one row group at a time."""

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hgsl.common.errors import InputError, first_line
from hgsl.data.files.fingerprints import content_fingerprint

MAX_OPEN = 16  # files per thread
FINGERPRINT = "fingerprint"  # column

_OPENED = threading.local()  # the open files and the last row group of a thread


class ParquetImage(NamedTuple):
    """The image of one row; as text, its name in messages."""

    images: "ParquetImages"
    id: int
    path: str

    def __str__(self) -> str:
        file, _, row = self.images.position(self.id)
        return f"{self.path} (row {row} of {self.images.files[file]})"

    def read(self) -> bytes:
        """The encoded image.

        Raises:
            InputError: The Parquet file is gone or damaged, or the row has no image.
        """
        content = self.images.read(self.id)
        if not content:
            raise InputError(f"cannot read image {self}: the row has no image")
        return content


@dataclass(frozen=True)
class ParquetImages:
    """The images of the rows of several Parquet files.

    A file is memory-mapped, and a read decodes one row group, of the column of images alone. Files are opened by each
    thread and process that reads them, since an open file cannot be shared with a forked process.

    Attributes:
        files: The Parquet files.
        column: The binary column, such as ``image``, or ``image.bytes`` of a struct.
        group_starts: (G + 1,) the first row of each row group, counted over all files, and the number of rows.
        group_file: (G,) the file of each row group, an index into ``files``.
        rows: (N,) the row of each image id, counted over all files.
        has_fingerprints: Whether the files have a column of fingerprints.
    """

    files: tuple[Path, ...]
    column: str
    group_starts: NDArray[np.int64] = field(repr=False)
    group_file: NDArray[np.int64] = field(repr=False)
    rows: NDArray[np.int64] = field(repr=False)
    has_fingerprints: bool = False

    def take(self, rows: NDArray[np.int64]) -> "ParquetImages":
        """The same files with other ids: ``rows[i]`` is the present id of the image with the id i."""
        return replace(self, rows=self.rows[rows])

    def position(self, image: int) -> tuple[int, int, int]:
        """The number of an image's file, of the row group in the file, and of the row in the file."""
        row = self.rows[image]
        group = int(np.searchsorted(self.group_starts, row, side="right")) - 1
        file = int(self.group_file[group])
        first_group = int(np.searchsorted(self.group_file, file))
        return file, group - first_group, int(row - self.group_starts[first_group])

    def read(self, image: int) -> bytes | None:
        """The encoded image of an id; None where the row has none."""
        row = self.rows[image]
        group = int(np.searchsorted(self.group_starts, row, side="right")) - 1
        file, group_in_file, _ = self.position(image)
        values = _row_group(self.files[file], group_in_file, self.column)
        content: bytes | None = values[int(row - self.group_starts[group])].as_py()
        return content

    def fingerprints(self, ids: Sequence[int]) -> list[str]:
        """The fingerprint of each image: from the column of fingerprints, else from the images, all of which are read.

        Raises:
            InputError: A file is gone or damaged.
        """
        column = FINGERPRINT if self.has_fingerprints else self.column
        by_row = np.empty(self.group_starts[-1], object)
        for group, values in enumerate(self._groups(column)):
            texts = values if self.has_fingerprints else [content_fingerprint(value or b"") for value in values]
            by_row[self.group_starts[group] : self.group_starts[group + 1]] = list(texts)
        return by_row[self.rows[np.asarray(ids, np.int64)]].tolist()

    def _groups(self, column: str) -> Iterator[Iterator[Any]]:
        first = np.searchsorted(self.group_file, self.group_file)  # of each row group, the first one of its file
        for group, file in enumerate(self.group_file.tolist()):
            values = _row_group(self.files[file], group - int(first[group]), column)
            yield (value.as_py() for value in values)


def open_parquet(path: Path) -> Any:
    """A memory-mapped ``pyarrow.parquet.ParquetFile``.

    Raises:
        FileNotFoundError: There is no such file.
        InputError: It is not a Parquet file, or damaged.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.ParquetFile(path, memory_map=True)
    except FileNotFoundError:
        raise FileNotFoundError(f"the Parquet file {path} does not exist") from None
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise InputError(f"{path} is not a Parquet file, or damaged: {first_line(error)}") from None


def _row_group(path: Path, group: int, column: str) -> Any:
    """The values of a column in one row group; the last row group of the thread is remembered."""
    import pyarrow

    key = (os.getpid(), path, group, column)
    if getattr(_OPENED, "group", (None,))[0] != key:
        _OPENED.group = (None,)  # frees the memory of the previous one
        try:
            table = _opened(path).read_row_group(group, columns=[column], use_threads=False)
        except FileNotFoundError as error:
            raise InputError(str(error)) from None
        except (pyarrow.ArrowException, OSError) as error:
            raise InputError(f"{path} is damaged in row group {group}: {first_line(error)}") from None
        values = table.column(0).combine_chunks()
        name = column.rpartition(".")[2]
        _OPENED.group = (key, values.field(name) if name != column else values)
    return _OPENED.group[1]


def _opened(path: Path) -> Any:
    """The open file of this thread of this process."""
    if getattr(_OPENED, "process", None) != os.getpid():
        _OPENED.process, _OPENED.files = os.getpid(), OrderedDict()
    files: OrderedDict[Path, Any] = _OPENED.files
    if path not in files:
        files[path] = open_parquet(path)
        if len(files) > MAX_OPEN:
            files.popitem(last=False)[1].close()
    files.move_to_end(path)
    return files[path]
