"""Retrieval metrics as pure functions of ranked hits.

Every function takes ``hits`` (Q, K) bool, where ``hits[q, r]`` is whether the neighbor at rank r + 1 of query q has
the query's label, with the query itself already removed, and returns one float64 value in [0, 1] per query. The score
of a data set is the mean over its queries. Where a query depends on it, ``relevant`` (Q,) holds R: the number of images
of its label in the gallery, without the query itself. A query with R = 0 has no match: it is counted and left out
before these functions are called (pytorch-metric-learning leaves it out too; the published HGSL code counts it as 0).
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hgsl.common.errors import InputError

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


def recall_at_k(hits: Bools, k: int) -> Floats:
    """Recall@K: 1 if any of the K nearest has the query's label, else 0.

    In a gallery with fewer than K images, all of them are used.

    >>> recall_at_k(np.array([[False, True, False]]), 2)
    array([1.])
    """
    return np.asarray(_top(hits, k).any(axis=1), dtype=np.float64)


def precision_at_k(hits: Bools, k: int) -> Floats:
    """Precision@K: hits among the K nearest / K.

    The divisor stays K where the gallery has fewer images: a rank with no image is a miss.

    >>> precision_at_k(np.array([[False, True, True]]), 3).round(3)
    array([0.667])
    """
    return _count(_top(hits, k)) / k


def r_precision(hits: Bools, relevant: Ints) -> Floats:
    """R-Precision: hits among the R nearest / R.

    >>> r_precision(np.array([[True, False, True]]), np.array([2]))
    array([0.5])

    Source: Musgrave, Belongie, Lim, "A Metric Learning Reality Check", ECCV 2020.
    """
    return _count(_top_r(hits, relevant)) / relevant


def map_at_r(hits: Bools, relevant: Ints) -> Floats:
    """MAP@R: 1/R * the sum over ranks i <= R of P(i), where P(i) is Precision@i if rank i is a hit, else 0.

    >>> map_at_r(np.array([[True, False, True]]), np.array([3])).round(3)  # (1/1 + 0 + 2/3) / 3
    array([0.556])

    Source: Musgrave, Belongie, Lim, "A Metric Learning Reality Check", ECCV 2020.
    """
    return _precision_sum(_top_r(hits, relevant)) / relevant


def map_at_k(hits: Bools, k: int) -> Floats:
    """mAP@K: 1/H * the sum over ranks i <= K of P(i), with H the hits among the K nearest; 0 without a hit.

    P(i) is Precision@i if rank i is a hit, else 0. The divisor H ignores matches beyond rank K: a query with one
    hit, at rank 1, scores 1 however many images of its label exist. It is offered to compare with published tables.

    >>> map_at_k(np.array([[True, False, True]]), 3).round(3)  # (1/1 + 2/3) / 2
    array([0.833])

    Source: the evaluation in the published code of the Hard Global Softmin Loss.
    """
    top = _top(hits, k)
    return _precision_sum(top) / np.maximum(_count(top), 1)


def reciprocal_rank(hits: Bools, k: int) -> Floats:
    """Reciprocal rank: 1 / the rank of the first hit among the K nearest, 0 without a hit; its mean is MRR@K.

    >>> reciprocal_rank(np.array([[False, True, True]]), 3)
    array([0.5])
    """
    top = _top(hits, k)
    return np.where(top.any(axis=1), 1 / (top.argmax(axis=1) + 1), 0)


def every_score(hits: Bools, relevant: Ints, ks: Sequence[int]) -> dict[str, Floats]:
    """Returns every metric of these queries under its key of a report; MRR is taken at the largest K."""
    return {
        **{f"recall@{k}": recall_at_k(hits, k) for k in ks},
        **{f"precision@{k}": precision_at_k(hits, k) for k in ks},
        **{f"map@{k}": map_at_k(hits, k) for k in ks},
        "r_precision": r_precision(hits, relevant),
        "map@r": map_at_r(hits, relevant),
        f"mrr@{max(ks)}": reciprocal_rank(hits, max(ks)),
    }


def _top(hits: Bools, k: int) -> Bools:
    if k < 1:
        raise InputError(f"K must be a rank of at least 1, found {k}")
    return hits[:, :k]


def _top_r(hits: Bools, relevant: Ints) -> Bools:
    hits = hits[:, : relevant.max(initial=0)]
    return hits & (np.arange(hits.shape[1]) < relevant[:, None])


def _count(hits: Bools) -> Ints:
    return np.asarray(np.count_nonzero(hits, axis=1), dtype=np.int64)


def _precision_sum(hits: Bools) -> Floats:
    """The sum over a query's hits of Precision@(their rank): hits are few, so only they are visited."""
    query, column = np.nonzero(hits)
    counts = _count(hits)
    earlier = np.cumsum(counts) - counts  # hits of the queries before this one
    rank_among_hits = np.arange(1, len(query) + 1) - earlier[query]
    return np.bincount(query, rank_among_hits / (column + 1), minlength=len(hits)).astype(np.float64)
