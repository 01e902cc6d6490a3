"""k nearest neighbors in blocks of queries: exact, within a memory budget, in an order fixed by a rule.

The rule: neighbors are sorted by descending score, equal scores by ascending gallery id, where the score of a pair is
computed in float64 from these two vectors alone and rounded to float32. FAISS does not provide this order: its
float32 sums change in the last bits with the block size, and the order of equal scores changes with the depth.

Therefore a backend (see ``backends``) returns a few more candidates than requested; if a candidate that it omitted
could, within the rounding noise, belong to the requested depth, more are fetched. Candidates whose scores differ by
more than twice the noise are already in order; runs of closer ones are rescored by the rule and sorted.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hgsl.common.errors import InputError
from hgsl.common.threads import map_ahead
from hgsl.evaluation.knn.exclusion import KeyPair, allowed, count_equal
from hgsl.evaluation.knn.order import Gallery, KnnRequest, settle
from hgsl.evaluation.knn.vectors import Floats, Ints, Vectors, lengths

SLACK = 16  # candidates beyond the requested depth, so that few queries need a second search
WIDER = 4  # factor by which a second search increases the candidates
BLOCK = 4096  # queries at a time where memory allows: FAISS works in blocks of this size itself


def k_nearest(
    gallery: Gallery,
    queries: Vectors,
    depths: Ints,
    *,
    excluded: Sequence[KeyPair] = (),
    labels: KeyPair | None = None,
    ordered: int = 0,
    max_memory: int = 1 << 30,
) -> Iterator[tuple[Ints, Ints]]:
    """Yields blocks (rows, positions) that cover every query once, queries of small depth first.

    ``rows`` (B,) are queries, ``positions`` (B, K) their nearest gallery rows, best first, where K is the largest depth
    among these queries; ranks for which the gallery has no image hold -1.

    Args:
        gallery: The images that are searched, with the k-NN backend.
        queries: (Q, D).
        depths: (Q,) how many neighbors each query needs, at least 1.
        excluded: Pairs of keys, (Q,) and (N,): a gallery row is excluded for a query if their keys in a pair are equal.
        labels: Labels of queries and gallery. If given, the order is exact only as far as it affects hits: within a run
            of equal scores that all have the query's label, or all have others, the order is that of the backend.
        ordered: With ``labels``, number of leading ranks that are in exact order nevertheless.
        max_memory: Bytes that may be used beyond the vectors.

    Raises:
        InputError: Not even one query at a time fits in ``max_memory``.
    """
    request = KnnRequest(gallery, queries, excluded, labels, ordered, max_memory)
    num_excluded = np.zeros(len(queries), dtype=np.int64)
    for query_keys, gallery_keys in excluded:
        num_excluded += count_equal(gallery_keys, query_keys)
    widths = np.minimum(depths + num_excluded + SLACK, len(gallery.vectors))

    def search(rows: Ints) -> tuple[Ints, Ints]:
        return rows, _ranked(request, rows, int(depths[rows].max()), int(widths[rows].max()))

    yield from map_ahead(search, _blocks(request, widths), gallery.concurrency)


def _blocks(request: KnnRequest, widths: Ints) -> Iterator[Ints]:
    """The rows of the queries in blocks that fit in memory, those with few candidates first."""
    order = np.argsort(widths, kind="stable")
    start = 0
    while start < len(order):
        size = _block_size(request, int(widths[order[start]]))
        while size > 1 and size > _block_size(request, int(widths[order[start : start + size]].max())):
            size //= 2
        yield order[start : start + size]
        start += size


def _block_size(request: KnnRequest, width: int) -> int:
    """Number of queries per block: memory is taken by copies of the candidates, and by the query vectors."""
    size = request.max_memory // (width * 80 + request.queries.width * 16)
    if size < 1:
        raise InputError(
            f"max_memory: {request.max_memory} bytes cannot hold the {width} candidates of one query: raise it"
        )
    return min(max(1, size // request.gallery.concurrency), BLOCK)


class _Candidates(NamedTuple):
    """The candidates of some queries, best first, with the excluded ones removed.

    ``complete`` (B,) marks the queries for which no omitted candidate can belong to the requested depth; scores and
    positions have the rows of these queries only. ``noise`` (B,) bounds the rounding error of a score.
    """

    scores: Floats
    positions: Ints
    noise: Floats
    complete: NDArray[np.bool_]


def _ranked(request: KnnRequest, rows: Ints, depth: int, width: int, caution: float = 1.0) -> Ints:
    """Returns the (B, depth) neighbors of some queries from ``width`` candidates each, or more where needed."""
    candidates = _candidates(request, rows, depth, width, caution)
    complete, incomplete = np.flatnonzero(candidates.complete), np.flatnonzero(~candidates.complete)
    noise, positions = candidates.noise[complete], candidates.positions
    error = settle(request, rows[complete], candidates.scores, positions, noise)
    ranked = positions[:, :depth]
    if len(incomplete) or positions.shape[1] < depth:
        ranked = np.full((len(rows), depth), -1, dtype=np.int64)
        ranked[complete, : positions.shape[1]] = positions[:, :depth]

    is_inexact = error > noise
    inexact = complete[is_inexact]
    if len(inexact):  # this backend is less accurate than float32 arithmetic
        worst = float((error[is_inexact] / noise[is_inexact]).max())
        ranked[inexact] = _ranked(request, rows[inexact], depth, width, 2 * caution * worst)
    if len(incomplete):
        ranked[incomplete] = _search_wider(request, rows[incomplete], depth, width, caution)
    return ranked


def _candidates(request: KnnRequest, rows: Ints, depth: int, width: int, caution: float) -> _Candidates:
    gallery = request.gallery
    vectors = request.queries.rows(rows)
    scores, positions = gallery.backend(vectors, width)
    lowest = scores[:, -1].copy()
    scores, positions = _remove_excluded(request, rows, scores, positions)
    complete = np.ones(len(rows), dtype=bool)
    if not gallery.exact:
        return _Candidates(scores, positions, np.full(len(rows), np.inf, dtype=np.float32), complete)
    noise = caution * _noise(gallery, vectors)
    if width < len(gallery.vectors):
        last = scores[:, min(depth, scores.shape[1]) - 1]
        complete = (scores.shape[1] >= depth) & (last > lowest + 2 * noise)
        if not complete.all():
            scores, positions = scores[complete], positions[complete]
    return _Candidates(scores, positions, noise, complete)


def _search_wider(request: KnnRequest, rows: Ints, depth: int, width: int, caution: float) -> Ints:
    """Returns the (B, depth) neighbors of queries for which ``width`` candidates were too few."""
    count, metric = len(request.gallery.vectors), request.gallery.metric
    wider = min(WIDER * width, count)
    crowded = 2 * wider > count and metric != "l2"
    size = _block_size(request, wider)
    blocks = [rows[start : start + size] for start in range(0, len(rows), size)]
    return np.concatenate(
        [
            _score_all(request, block, depth) if crowded else _ranked(request, block, depth, wider, caution)
            for block in blocks
        ]
    )


def _score_all(request: KnnRequest, rows: Ints, depth: int) -> Ints:
    """Returns the (B, depth) neighbors of some queries by scoring every gallery row by the rule.

    It serves embeddings of which at least half lie within the noise, such as those of a collapsed network, for which
    scoring single pairs takes hours. It is not used for squared distances, since that of equal vectors would not be 0.
    """
    gallery, count = request.gallery, len(request.gallery.vectors)
    scores = np.empty((len(rows), count), dtype=np.float32)
    vectors = request.queries.rows(rows).astype(np.float64)
    for chunk in gallery.vectors.chunks():
        scores[:, chunk] = vectors @ gallery.vectors.rows(chunk).astype(np.float64).T
    positions = np.broadcast_to(np.arange(count), scores.shape)
    forbidden = ~allowed(positions, rows, request.excluded)
    scores[forbidden] = -np.inf
    order = np.lexsort((np.broadcast_to(gallery.ids, scores.shape), -scores), axis=1)[:, :depth]
    order[np.take_along_axis(forbidden, order, 1)] = -1
    ranked = np.full((len(rows), depth), -1, dtype=np.int64)
    ranked[:, : order.shape[1]] = order
    return ranked


def _noise(gallery: Gallery, vectors: Floats) -> Floats:
    """A bound (B,) on the rounding error of a backend's score, far out in the tail of its distribution.

    The error of a float32 sum of D products is a random walk of D steps, each at most half a unit in the last place of
    the partial sum, which Cauchy-Schwarz bounds: sqrt(D) 2^-24 |q| |g|, doubled here. ``settle`` measures the error.
    """
    longest = gallery.vectors.longest
    norms = lengths(vectors)
    scale = (norms + longest) ** 2 if gallery.metric == "l2" else norms * longest
    return (2 * np.sqrt(vectors.shape[1]) * 2.0**-24 * scale).astype(np.float32)


def _remove_excluded(request: KnnRequest, rows: Ints, scores: Floats, positions: Ints) -> tuple[Floats, Ints]:
    """Removes the excluded candidates; the others move to the left, and shorter rows are padded."""
    valid = allowed(positions, rows, request.excluded)
    counts = np.count_nonzero(valid, axis=1)
    width = positions.shape[1]
    # Usually a query is its own nearest and only it is excluded: then the first column is dropped and nothing is moved.
    # A row without excluded candidates then loses its last one, unless the candidates are the whole gallery.
    shift = int(counts.max() < width or (counts.min() < width < len(request.gallery.vectors)))
    irregular = np.flatnonzero((counts < width - shift) | (valid[:, 0] if shift else False))
    compact = _left_aligned(scores[irregular], positions[irregular], valid[irregular])
    scores, positions = scores[:, shift:], positions[:, shift:]
    if len(irregular):
        scores[irregular], positions[irregular] = compact[0][:, : width - shift], compact[1][:, : width - shift]
    return scores, positions


def _left_aligned(scores: Floats, positions: Ints, valid: NDArray[np.bool_]) -> tuple[Floats, Ints]:
    """The valid candidates of each row, in their order, then padding."""
    front = np.arange(valid.shape[1]) < np.count_nonzero(valid, axis=1)[:, None]
    front_scores = np.full(valid.shape, -np.inf, dtype=np.float32)
    front_positions = np.full(valid.shape, -1, dtype=np.int64)
    front_scores[front], front_positions[front] = scores[valid], positions[valid]
    return front_scores, front_positions
