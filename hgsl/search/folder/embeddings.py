"""``embeddings.N.npy``: a matrix to which rows are appended in place.

NumPy leaves room in the header of the file for more rows. The rows are written and flushed first, then their number in
the header: at any moment the file is a valid array.
"""

import os
from pathlib import Path

import numpy as np

from hgsl.common.disk import named_disk_errors
from hgsl.evaluation.knn.vectors import Floats, Vectors, load_array, open_vectors

DTYPE = np.dtype("<f4")


class EmbeddingsFile:
    """An embeddings file that is open for writing.

    Args:
        path: Created if it is missing.
        width: D.
        rows: Rows to keep; later ones are overwritten, but not cut off, since a reader may have mapped them.
    """

    def __init__(self, path: Path, width: int, rows: int = 0) -> None:
        self.path, self.width, self.rows = path, width, rows
        with named_disk_errors(path):
            self._file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
            self._write_header()
            self._start = self._file.tell()

    def close(self) -> None:
        self._file.close()

    @property
    def _end(self) -> int:
        return self._start + self.rows * self.width * DTYPE.itemsize

    def append(self, vectors: Floats) -> None:
        """Appends vectors (B, D); they survive a crash after :meth:`flush`."""
        with named_disk_errors(self.path):
            self._file.seek(self._end)
            self._file.write(np.ascontiguousarray(vectors, dtype=DTYPE).tobytes())
            self._file.flush()
        self.rows += len(vectors)

    def flush(self) -> None:
        """Flushes the rows to disk, then their number in the header."""
        with named_disk_errors(self.path):
            os.fsync(self._file.fileno())
            self._write_header()
            os.fsync(self._file.fileno())

    def vectors(self) -> Vectors:
        """The rows that were flushed, memory-mapped."""
        return read_embeddings(self.path, self.rows)

    def _write_header(self) -> None:
        header = {"descr": DTYPE.str, "fortran_order": False, "shape": (self.rows, self.width)}
        self._file.seek(0)
        np.lib.format.write_array_header_1_0(self._file, header)
        self._file.flush()


def stored_matrix(path: Path) -> Floats | None:
    """The matrix in an embeddings file, memory-mapped; None if there is no file or it is damaged."""
    try:
        matrix: Floats = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, EOFError, ValueError):
        return None
    return matrix if isinstance(matrix, np.ndarray) and matrix.ndim == 2 and matrix.dtype == DTYPE else None


def read_embeddings(path: Path, rows: int) -> Vectors:
    """Memory-maps the first ``rows`` rows, or all if there are fewer.

    Raises:
        FileNotFoundError: It does not exist.
        InputError: It is damaged.
    """
    return open_vectors(load_array(path, "embeddings")[:rows], "embeddings")
