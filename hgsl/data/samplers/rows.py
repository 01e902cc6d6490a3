"""Rows of a data set grouped by class, and draws from them."""

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]


def rows_by_class(labels: Rows) -> list[Rows]:
    """One array of rows per class, in the order of the labels.

    >>> [rows.tolist() for rows in rows_by_class(np.array([1, 0, 1]))]
    [[1], [0, 2]]
    """
    order = np.argsort(labels, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)


def draw_in_passes(rows: Rows, count: int, rng: np.random.Generator) -> Rows:
    """``count`` of ``rows`` in random order, each pass over all of them completed before the next one begins."""
    return np.concatenate([rng.permutation(rows) for _ in range(-(-count // len(rows)))])[:count]
