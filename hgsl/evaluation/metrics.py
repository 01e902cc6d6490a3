"""Retrieval metrics as pure functions of ranked hits.

Every function takes ``hits`` (Q, K) bool, where ``hits[q, r]`` says whether the neighbour at rank r + 1 of query q has
the query's label, with the query itself already removed, and returns one float64 value in [0, 1] a query. The score of
a data set is the mean over its queries. Where a query depends on it, ``relevant`` (Q,) holds R: how many images of its
label the gallery has for that query, the query itself not counted. A query with R = 0 cannot be answered and is left
out before these functions are called.
"""

import numpy as np
from numpy.typing import NDArray

from hgsl.common.errors import InputError

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


def recall_at_k(hits: Bools, k: int) -> Floats:
    """Recall@K: 1 if any of the K nearest has the query's label, else 0.

    A gallery with fewer than K images is looked at whole.

    >>> recall_at_k(np.array([[False, True, False]]), 2)
    array([1.])
    """
    return hits[:, : _rank(k)].any(axis=1).astype(np.float64)


def precision_at_k(hits: Bools, k: int) -> Floats:
    """Precision@K: hits among the K nearest / K.

    The divisor stays K where the gallery has fewer images: a rank with no image is a miss.

    >>> precision_at_k(np.array([[False, True, True]]), 3).round(3)
    array([0.667])
    """
    return hits[:, : _rank(k)].sum(axis=1) / k


def r_precision(hits: Bools, relevant: Ints) -> Floats:
    """R-Precision: hits among the R nearest / R.

    >>> r_precision(np.array([[True, False, True]]), np.array([2]))
    array([0.5])

    Source: Musgrave, Belongie, Lim, "A Metric Learning Reality Check", ECCV 2020.
    """
    return (hits & _within(hits, relevant)).sum(axis=1) / relevant


def map_at_r(hits: Bools, relevant: Ints) -> Floats:
    """MAP@R: 1/R * the sum over ranks i <= R of P(i), where P(i) is Precision@i if rank i is a hit, else 0.

    >>> map_at_r(np.array([[True, False, True]]), np.array([3])).round(3)  # (1/1 + 0 + 2/3) / 3
    array([0.556])

    Source: Musgrave, Belongie, Lim, "A Metric Learning Reality Check", ECCV 2020.
    """
    return _precision_sum(hits & _within(hits, relevant)) / relevant


def _precision_sum(hits: Bools) -> Floats:
    """The sum over the hits of Precision@(their rank)."""
    found = np.cumsum(hits, axis=1, dtype=np.int32)
    ranks = np.arange(1, hits.shape[1] + 1)
    return (found / ranks).sum(axis=1, where=hits)


def _within(hits: Bools, relevant: Ints) -> Bools:
    return np.arange(hits.shape[1]) < relevant[:, None]


def _rank(k: int) -> int:
    if k < 1:
        raise InputError(f"K must be a rank of at least 1, found {k}")
    return k
