"""The two files of an index that grow: embeddings and images."""

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from hgsl.common.disk import named_disk_errors
from hgsl.common.fingerprint import array_sum
from hgsl.evaluation.knn.vectors import Floats, Vectors
from hgsl.search.folder.embeddings import DTYPE, EmbeddingsFile, stored_matrix
from hgsl.search.folder.table import ImageTable, apply_line, change_line, is_intact, read_tail, row_line
from hgsl.search.stores.protocol import ImageFile, ImageRow

CHUNK = 4096  # rows written at a time when the files are written anew


def names_of(number: int) -> dict[str, str]:
    """The names of the files with a number."""
    return {"embeddings": f"embeddings.{number}.npy", "images": f"images.{number}.jsonl"}


class Appender:
    """The files of an index, open for appending; rows that another state does not count may be overwritten.

    Args:
        folder: The index folder.
        files: Names of the files.
        table: The rows to keep.
        size: Bytes of the images file to keep.
        width: D.
        model: Fingerprint of the model.

    Attributes:
        table: The rows that are written.
        size: Bytes of the images file that are written.
    """

    def __init__(self, folder: Path, files: dict[str, str], table: ImageTable, size: int, width: int, model: str):
        self.folder, self.files, self.table, self.size, self.model = folder, files, table, size, model
        self._embeddings = EmbeddingsFile(folder / files["embeddings"], width, len(table))
        self._images = folder / files["images"]
        self._rows: list[ImageRow] = []
        self._numbers: list[int] = []
        self._matrices: list[Floats] = []

    def close(self) -> None:
        self._embeddings.close()

    def add(self, numbers: Sequence[int], rows: Sequence[ImageRow], vectors: Floats) -> None:
        """Adds images with their numbers and vectors (B, D); :meth:`flush` writes them."""
        self._numbers += numbers
        self._rows += rows
        self._matrices.append(vectors)

    def flush(self) -> None:
        """Writes what was added: the vectors first, so that a line of images always has its vectors."""
        if not self._rows:
            return
        matrix = np.concatenate(self._matrices).astype(DTYPE, copy=False)
        self._embeddings.append(matrix)
        self._embeddings.flush()
        self._append_line(row_line(self._numbers, self._rows, self.model, array_sum(matrix)))
        self.table.append(self._numbers, self._rows)
        self._rows, self._numbers, self._matrices = [], [], []

    def change(self, removed: Sequence[int], broken: Mapping[ImageFile, str]) -> None:
        """Writes that rows are removed, and the images that cannot be read at present."""
        self._append_line(change_line(removed, broken))
        self.table.removed.update(removed)
        self.table.broken = dict(broken)

    def vectors(self) -> Vectors:
        """The vectors of the rows that are written, memory-mapped."""
        return self._embeddings.vectors()

    def rewritten(self, number: int) -> "Appender":
        """Writes the rows that are not removed, in the order of their paths, to new files; returns these."""
        table, vectors = self.table, self.vectors()
        rows = sorted(table.live().tolist(), key=table.paths.__getitem__)
        copy = Appender(self.folder, names_of(number), ImageTable(), 0, vectors.width, self.model)
        for part in (rows[start : start + CHUNK] for start in range(0, len(rows), CHUNK)):
            copy.add(
                [table.numbers[row] for row in part], [table.row(row) for row in part], vectors.rows(np.array(part))
            )
            copy.flush()
        copy.change([], table.broken)
        return copy

    def _append_line(self, line: bytes) -> None:
        with named_disk_errors(self._images), self._images.open("r+b" if self._images.exists() else "wb") as file:
            file.truncate(self.size)
            file.seek(self.size)
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        self.size += len(line)


def resumed(folder: Path, files: dict[str, str], table: ImageTable, size: int, model: str) -> tuple[list[int], int]:
    """Adds to ``table`` the rows of a model that an interrupted update has appended.

    Args:
        folder: The index folder.
        files: Names of the files.
        table: The rows of the current state.
        size: Bytes of the images file that belong to the current state.
        model: Fingerprint of the model.

    Returns:
        The positions of the rows that were added, and the bytes of the images file that are in use now.
    """
    before, matrix = len(table), stored_matrix(folder / files["embeddings"])
    for line, lines in _row_lines(read_tail(folder / files["images"], size), model):
        [(count, checksum)] = lines.blocks
        if matrix is None or array_sum(matrix[len(table) : len(table) + count]) != checksum:
            break
        table.append(lines.numbers, [lines.row(position) for position in range(count)])
        size += len(line)
    return list(range(before, len(table))), size


def _row_lines(lines: Sequence[bytes], model: str) -> Iterator[tuple[bytes, ImageTable]]:
    """The leading lines that hold rows of a model, each with its rows."""
    for line in itertools.takewhile(is_intact, lines):
        rows = ImageTable()
        try:
            if apply_line(rows, line) != model:
                return
        except (KeyError, TypeError, ValueError, IndexError, RecursionError):
            return
        yield line, rows
