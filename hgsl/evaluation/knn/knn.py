"""Nearest neighbors in blocks of queries: exact, within a memory budget, in an order fixed by a rule.

The rule: neighbors are sorted by falling score, equal scores by rising gallery id, where the score of a pair is
computed in float64 from these two vectors alone and rounded to float32. FAISS by itself gives no such order: its
float32 sums change in the last bits with the block size, and equal scores come in an order that changes with the depth.

So a proposer (see ``candidates``) names somewhat more candidates than are asked for; if the depth asked for might end
within the rounding noise of what it left out, more are fetched. Two candidates whose proposed scores differ by more
than twice the noise are in the right order already; a run of closer ones is scored again by the rule and sorted.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from hgsl.common.errors import InputError
from hgsl.evaluation.knn.exclusion import KeyPair, allowed, count_equal
from hgsl.evaluation.knn.order import Gallery, Search, settle
from hgsl.evaluation.knn.vectors import Floats, Ints, Vectors

SLACK = 16  # candidates beyond the depth asked for, so that few queries need a second look
WIDER = 4  # how many times more candidates a second look takes
BLOCK = 4096  # queries at a time where memory allows: FAISS works in blocks of this size itself


def nearest_blocks(
    gallery: Gallery,
    queries: Vectors,
    depths: Ints,
    *,
    excluded: Sequence[KeyPair] = (),
    labels: KeyPair | None = None,
    max_memory: int = 1 << 30,
) -> Iterator[tuple[Ints, Ints]]:
    """Yields (rows, positions) until every query has come once; queries that need little depth come first.

    ``rows`` (B,) count queries. ``positions`` (B, K) count gallery rows, best first, where K is the largest depth among
    these queries; ranks for which the gallery has no image hold -1.

    Args:
        depths: (Q,) how many neighbors each query needs, at least 1.
        excluded: Pairs of keys, (Q,) and (N,): a gallery row is left out for a query if their keys are equal in any.
        labels: Labels of queries and gallery. If given, only what matters for hits is put in order: within a run of
            equal scores that are all of the query's label, or all of others, the order is left as it was proposed.
        max_memory: Bytes that may be used beyond the vectors.

    Raises:
        InputError: Not even one query at a time fits in ``max_memory``.
    """
    search = Search(gallery, queries, excluded, labels, max_memory)
    left_out = np.zeros(len(queries), dtype=np.int64)
    for query_keys, gallery_keys in excluded:
        left_out += count_equal(gallery_keys, query_keys)
    widths = np.minimum(depths + left_out + SLACK, len(gallery.vectors))
    order = np.argsort(widths, kind="stable")
    start = 0
    while start < len(order):
        size = _block_size(int(widths[order[start]]), queries.width, max_memory)
        while size > 1 and size > _block_size(
            int(widths[order[start : start + size]].max()), queries.width, max_memory
        ):
            size //= 2
        rows = order[start : start + size]
        yield rows, _ranked(search, rows, int(depths[rows].max()), int(widths[rows].max()))
        start += size


def _block_size(width: int, dimensions: int, max_memory: int) -> int:
    """How many queries fit: per candidate the proposer's and our own copies, per query its vector."""
    size = max_memory // (width * 80 + dimensions * 16)
    if size < 1:
        raise InputError(f"max_memory: {max_memory} bytes cannot hold the {width} candidates of one query: raise it")
    return min(size, BLOCK)


def _ranked(search: Search, rows: Ints, depth: int, width: int, caution: float = 1.0) -> Ints:
    """Returns the (B, depth) neighbors of some queries, looking at ``width`` candidates each, or more if need be."""
    gallery, count = search.gallery, len(search.gallery.vectors)
    vectors = search.queries.rows(rows)
    scores, positions = gallery.propose(vectors, width)
    lowest = scores[:, -1].copy()
    scores, positions = _without_excluded(search, rows, scores, positions)
    noise, sure = np.full(len(rows), np.inf, dtype=np.float32), np.ones(len(rows), dtype=bool)
    if gallery.exact:
        noise = caution * _noise(gallery, vectors)
    if gallery.exact and width < count:
        last = scores[:, min(depth, scores.shape[1]) - 1]
        sure = (scores.shape[1] >= depth) & (last > lowest + 2 * noise)
        scores, positions = (scores, positions) if sure.all() else (scores[sure], positions[sure])
    settled, unsure = np.flatnonzero(sure), np.flatnonzero(~sure)
    error = settle(search, rows[settled], scores, positions, noise[settled])
    if len(settled) == len(rows) and positions.shape[1] >= depth:
        ranked = positions[:, :depth]
    else:
        ranked = np.full((len(rows), depth), -1, dtype=np.int64)
        ranked[settled, : positions.shape[1]] = positions[:, :depth]

    mistaken = settled[error > noise[settled]]
    if len(mistaken):  # this proposer is less exact than float32 should be
        worst = float((error / noise[settled]).max())
        ranked[mistaken] = _ranked(search, rows[mistaken], depth, width, 2 * caution * worst)
    wider = min(WIDER * width, count)
    crowded = 2 * wider > count and gallery.metric != "l2"
    size = _block_size(wider, search.queries.width, search.max_memory) if len(unsure) else 1
    for start in range(0, len(unsure), size):
        part = unsure[start : start + size]
        found = (
            _all_ranked(search, rows[part], depth) if crowded else _ranked(search, rows[part], depth, wider, caution)
        )
        ranked[part] = found
    return ranked


def _all_ranked(search: Search, rows: Ints, depth: int) -> Ints:
    """Returns the (B, depth) neighbors of some queries by scoring every gallery row by the rule.

    This is for embeddings of which half or more lie within the noise, as those of a network that has collapsed: scored
    pair by pair they would take hours. Squared distances are not done this way: that of equal vectors would not be 0.
    """
    gallery, count = search.gallery, len(search.gallery.vectors)
    scores = np.empty((len(rows), count), dtype=np.float32)
    vectors = search.queries.rows(rows).astype(np.float64)
    for chunk in gallery.vectors.chunks():
        scores[:, chunk] = vectors @ gallery.vectors.rows(chunk).astype(np.float64).T
    positions = np.broadcast_to(np.arange(count), scores.shape)
    left_out = ~allowed(positions, rows, search.excluded)
    scores[left_out] = -np.inf
    order = np.lexsort((np.broadcast_to(gallery.ids, scores.shape), -scores), axis=1)[:, :depth]
    order[np.take_along_axis(left_out, order, 1)] = -1
    ranked = np.full((len(rows), depth), -1, dtype=np.int64)
    ranked[:, : order.shape[1]] = order
    return ranked


def _noise(gallery: Gallery, vectors: Floats) -> Floats:
    """A bound (B,) on the rounding error of a proposed score, far out in the tail of its distribution.

    The error of a float32 sum of D products is a random walk of D steps, each at most half a unit in the last place of
    the partial sum, which Cauchy-Schwarz bounds: sqrt(D) 2^-24 |q| |g|, doubled here. ``_settle`` checks it.
    """
    longest = gallery.vectors.longest
    lengths = np.linalg.norm(vectors, axis=1)
    scale = (lengths + longest) ** 2 if gallery.metric == "l2" else lengths * longest
    return (2 * np.sqrt(vectors.shape[1]) * 2.0**-24 * scale).astype(np.float32)


def _without_excluded(search: Search, rows: Ints, scores: Floats, positions: Ints) -> tuple[Floats, Ints]:
    """Drops the excluded candidates; the others close up, and shorter lines are padded."""
    kept = allowed(positions, rows, search.excluded)
    counts = np.count_nonzero(kept, axis=1)
    width = positions.shape[1]
    # Mostly a query is its own nearest and nothing else is excluded: then the first column goes, and nothing is moved.
    # A line without any excluded loses its last candidate by that, unless these are all there are.
    shift = int(counts.max() < width or (counts.min() < width < len(search.gallery.vectors)))
    odd = np.flatnonzero((counts < width - shift) | (kept[:, 0] if shift else False))
    if len(odd):
        place = np.arange(width) < counts[odd, None]
        taken = kept[odd]
        odd_scores = np.full(place.shape, -np.inf, dtype=np.float32)
        odd_positions = np.full(place.shape, -1, dtype=np.int64)
        odd_scores[place], odd_positions[place] = scores[odd][taken], positions[odd][taken]
    scores, positions = scores[:, shift:], positions[:, shift:]
    if len(odd):
        scores[odd], positions[odd] = odd_scores[:, : width - shift], odd_positions[:, : width - shift]
    return scores, positions
