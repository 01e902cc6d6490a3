"""Exact nearest neighbours in blocks of queries, with the query removed by id and ties broken by a rule.

The rule: neighbours are sorted by falling score, equal scores by rising gallery id. The score of a pair is computed in
float64 from these two vectors alone and rounded to float32, so neither the depth, the block size nor the number of
threads can change it. FAISS proposes more candidates than are asked for; they are then scored and sorted by the rule.
"""

from collections.abc import Iterator

import faiss
import numpy as np
from numpy.typing import NDArray

from hgsl.common.errors import unknown

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

METRICS = {"inner_product": faiss.METRIC_INNER_PRODUCT, "l2": faiss.METRIC_L2}
SLACK = 16  # candidates beyond what is asked for, so that most ties at the cut are settled in the first attempt


def nearest_blocks(
    queries: Floats,
    gallery: Floats,
    k: int,
    *,
    query_ids: Ints,
    gallery_ids: Ints,
    metric: str = "inner_product",
    max_memory: int = 1 << 30,
) -> Iterator[tuple[slice, Floats, Ints]]:
    """Yields (rows, scores, positions) block by block: the k nearest gallery rows of each query, best first.

    Gallery rows whose id is the query's are left out. Scores (B, k) are inner products, or negated squared distances
    for ``l2``; positions (B, k) count gallery rows. A gallery with too few rows is padded with score -inf, position -1.

    Args:
        queries: (Q, D) float32.
        gallery: (N, D) float32.
        k: How many neighbours, at least 1.
        query_ids: (Q,) integers.
        gallery_ids: (N,) integers.
        metric: ``inner_product`` or ``l2``.
        max_memory: Bytes that may be used beyond the arguments.

    Raises:
        InputError: The metric is unknown.
    """
    if metric not in METRICS:
        raise unknown("metric", metric, METRICS)
    _, counts = np.unique(gallery_ids, return_counts=True)
    width = min(len(gallery), k + int(counts.max()) + SLACK)
    block = int(np.clip(max_memory // (width * 64 + queries.shape[1] * 64), 1, 4096))
    for start in range(0, len(queries), block):
        rows = slice(start, min(start + block, len(queries)))
        scores = np.full((rows.stop - rows.start, k), -np.inf, dtype=np.float32)
        positions = np.full(scores.shape, -1, dtype=np.int64)
        pending, depth = np.arange(rows.stop - rows.start), width
        while len(pending):
            found_scores, found = _ranked(
                queries[rows][pending], gallery, depth, query_ids[rows][pending], gallery_ids, metric
            )
            scores[pending, : min(k, depth)] = found_scores[:, :k]
            positions[pending, : min(k, depth)] = found[:, :k]
            if depth == len(gallery):
                break
            # The worst candidate bounds what FAISS left out, up to the rounding of its float32 sums.
            margin = 1e-5 * np.abs(found_scores[:, :1])
            worst = np.where(found >= 0, found_scores, np.inf).min(axis=1)
            pending = pending[worst + margin[:, 0] >= found_scores[:, k - 1]]
            depth = min(2 * depth, len(gallery))
        yield rows, scores, positions


def pair_scores(queries: Floats, gallery: Floats, positions: Ints, metric: str = "inner_product") -> Floats:
    """Returns the (B, K) float32 scores of each query with the gallery rows at its positions (-1 gives -inf)."""
    scores = np.empty(positions.shape, dtype=np.float32)
    for row, (query, columns) in enumerate(zip(queries.astype(np.float64), positions, strict=True)):
        rows = gallery[columns].astype(np.float64)
        if metric == "l2":
            difference = rows - query
            scores[row] = -np.einsum("kd,kd->k", difference, difference)
        else:
            scores[row] = np.einsum("kd,d->k", rows, query)
    scores[positions < 0] = -np.inf
    return scores


def _ranked(
    queries: Floats, gallery: Floats, depth: int, query_ids: Ints, gallery_ids: Ints, metric: str
) -> tuple[Floats, Ints]:
    _, found = faiss.knn(queries, gallery, depth, metric=METRICS[metric])
    found[gallery_ids[found] == query_ids[:, None]] = -1
    scores = pair_scores(queries, gallery, found, metric)
    order = np.lexsort((gallery_ids[found], -scores), axis=1)
    return np.take_along_axis(scores, order, 1), np.take_along_axis(found, order, 1)
