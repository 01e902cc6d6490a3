"""k-NN backends of a folder: restricted to some rows of another backend."""

import numpy as np

from hgsl.evaluation.knn.backends import Backend
from hgsl.evaluation.knn.vectors import Floats, Ints

MARGIN = 16  # candidates beyond the requested ones
WIDER = 4  # factor by which a further search increases the candidates


def restricted(backend: Backend, size: int, rows: Ints) -> Backend:
    """The backend over the rows ``rows``, ascending, of another backend over ``size`` rows.

    It asks for more candidates until enough of them are among these rows: exact if the other backend is.
    """
    position_of = np.full(size + 1, -1, dtype=np.int64)  # the last entry is that of padding, row -1
    position_of[rows] = np.arange(len(rows))

    def search(queries: Floats, count: int) -> tuple[Floats, Ints]:
        width = min(size, count + MARGIN)
        while True:
            scores, candidates = backend(queries, width)
            positions = position_of[candidates]
            complete = ((positions >= 0).sum(axis=1) >= min(count, len(rows))) | (candidates < 0).any(axis=1)
            if width >= size or complete.all():
                return _front(scores, positions, count)
            width = min(size, WIDER * width)

    return search


def _front(scores: Floats, positions: Ints, count: int) -> tuple[Floats, Ints]:
    """Moves the valid candidates to the front and pads with score -inf and position -1."""
    order = np.argsort(positions < 0, axis=1, kind="stable")[:, :count]
    positions = np.take_along_axis(positions, order, 1)
    scores = np.where(positions < 0, -np.inf, np.take_along_axis(scores, order, 1)).astype(np.float32)
    return scores, positions
