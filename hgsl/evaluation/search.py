"""Nearest neighbours in blocks of queries: exact, within a memory budget, in an order fixed by a rule.

The rule: neighbours are sorted by falling score, equal scores by rising gallery id, where the score of a pair is
computed in float64 from these two vectors alone and rounded to float32. FAISS by itself gives no such order: its
float32 sums change in the last bits with the block size, and equal scores come in an order that changes with the depth.

So a proposer (see ``candidates``) names somewhat more candidates than are asked for; if the depth asked for might end
within the rounding noise of what it left out, more are fetched. Two candidates whose proposed scores differ by more
than twice the noise are in the right order already; a run of closer ones is scored again by the rule and sorted.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from hgsl.common.errors import InputError
from hgsl.evaluation.candidates import Proposer
from hgsl.evaluation.keys import KeyPair, allowed, count_equal
from hgsl.evaluation.vectors import Floats, Ints, Vectors

SLACK = 16  # candidates beyond the depth asked for, so that few queries need a second look
WIDER = 4  # how many times more candidates a second look takes
BLOCK = 4096  # queries at a time where memory allows: FAISS works in blocks of this size itself
PAIRS = 256  # pairs scored at a time: their float64 vectors stay in the processor's cache


@dataclass(frozen=True)
class Gallery:
    """What is searched: vectors, their ids, and who proposes neighbours.

    Attributes:
        vectors: (N, D).
        ids: (N,) integers; the lower id comes first among equal scores.
        metric: ``cosine``, ``inner_product`` or ``l2``.
        propose: The proposer over these vectors.
        exact: Whether the proposer looks at every vector.
    """

    vectors: Vectors
    ids: Ints
    metric: str
    propose: Proposer
    exact: bool = True


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
        depths: (Q,) how many neighbours each query needs, at least 1.
        excluded: Pairs of keys, (Q,) and (N,): a gallery row is left out for a query if their keys are equal in any.
        labels: Labels of queries and gallery. If given, only what matters for hits is put in order: within a run of
            equal scores that are all of the query's label, or all of others, the order is left as it was proposed.
        max_memory: Bytes that may be used beyond the vectors.

    Raises:
        InputError: Not even one query at a time fits in ``max_memory``.
    """
    search = _Search(gallery, queries, excluded, labels, max_memory)
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


def pair_scores(gallery: Vectors, positions: Ints, queries: Vectors, rows: Ints, metric: str) -> Floats:
    """Returns the (P,) scores, by the rule, of gallery rows ``positions`` (P,) with query rows ``rows`` (P,).

    A score is the inner product, or the negated squared distance for ``l2``; position -1 scores -inf.
    """
    scores = np.empty(len(positions), dtype=np.float32)
    for start in range(0, len(positions), PAIRS):
        part = slice(start, start + PAIRS)
        left = gallery.rows(positions[part]).astype(np.float64)
        right = queries.rows(rows[part]).astype(np.float64)
        if metric == "l2":
            left -= right
            scores[part] = -np.einsum("pd,pd->p", left, left)
        else:
            scores[part] = np.einsum("pd,pd->p", left, right)
    scores[positions < 0] = -np.inf
    return scores


def neighbour_scores(gallery: Gallery, queries: Vectors, rows: Ints, positions: Ints) -> Floats:
    """Returns the (B, K) scores, by the rule, of the neighbours ``positions`` (B, K) of query rows ``rows`` (B,)."""
    flat = np.repeat(rows, positions.shape[1])
    return pair_scores(gallery.vectors, positions.ravel(), queries, flat, gallery.metric).reshape(positions.shape)


@dataclass(frozen=True)
class _Search:
    """The arguments of ``nearest_blocks``."""

    gallery: Gallery
    queries: Vectors
    excluded: Sequence[KeyPair]
    labels: KeyPair | None
    max_memory: int


def _block_size(width: int, dimensions: int, max_memory: int) -> int:
    """How many queries fit: per candidate the proposer's and our own copies, per query its vector."""
    size = max_memory // (width * 80 + dimensions * 16)
    if size < 1:
        raise InputError(f"max_memory: {max_memory} bytes cannot hold the {width} candidates of one query: raise it")
    return min(size, BLOCK)


def _ranked(search: _Search, rows: Ints, depth: int, width: int, caution: float = 1.0) -> Ints:
    """Returns the (B, depth) neighbours of some queries, looking at ``width`` candidates each, or more if need be."""
    gallery, count = search.gallery, len(search.gallery.vectors)
    vectors = search.queries.rows(rows)
    scores, positions = gallery.propose(vectors, width)
    lowest = scores[:, -1].copy()
    scores, positions = _without_excluded(search, rows, scores, positions)
    ranked = np.full((len(rows), depth), -1, dtype=np.int64)
    noise, sure = np.full(len(rows), np.inf, dtype=np.float32), np.ones(len(rows), dtype=bool)
    if gallery.exact:
        noise = caution * _noise(gallery, vectors)
    if gallery.exact and width < count:
        last = scores[:, min(depth, scores.shape[1]) - 1]
        sure = (scores.shape[1] >= depth) & (last > lowest + 2 * noise)
        scores, positions = (scores, positions) if sure.all() else (scores[sure], positions[sure])
    settled, unsure = np.flatnonzero(sure), np.flatnonzero(~sure)
    error = _settle(search, rows[settled], scores, positions, noise[settled])
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


def _all_ranked(search: _Search, rows: Ints, depth: int) -> Ints:
    """Returns the (B, depth) neighbours of some queries by scoring every gallery row by the rule.

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


def _without_excluded(search: _Search, rows: Ints, scores: Floats, positions: Ints) -> tuple[Floats, Ints]:
    """Drops the excluded candidates; the rows close up and are padded at the end to the longest of them."""
    kept = allowed(positions, rows, search.excluded)
    counts = np.count_nonzero(kept, axis=1)
    if counts.min() == positions.shape[1]:
        return scores, positions
    place = np.arange(counts.max()) < counts[:, None]
    closed_scores = np.full(place.shape, -np.inf, dtype=np.float32)
    closed = np.full(place.shape, -1, dtype=np.int64)
    closed_scores[place], closed[place] = scores[kept], positions[kept]
    return closed_scores, closed


def _settle(search: _Search, rows: Ints, scores: Floats, positions: Ints, noise: Floats) -> Floats:
    """Sorts, in place, each run of candidates closer than the noise; returns the (B,) largest error seen in a score."""
    gallery, seen = search.gallery, np.zeros(len(rows), dtype=np.float32)
    if scores.shape[1] < 2 or not len(rows):
        return seen
    with np.errstate(invalid="ignore"):  # padding: inf - inf
        near = scores[:, :-1] - scores[:, 1:] <= 2 * noise[:, None]
    first = np.ones(scores.shape, dtype=bool)
    np.logical_not(near, out=first[:, 1:])
    run = np.cumsum(first, dtype=np.int32).reshape(scores.shape) - 1  # number of the run a candidate is in
    if search.labels is not None:
        query_labels, gallery_labels = search.labels
        hits = (gallery_labels[positions] == query_labels[rows, None]) & (positions >= 0)
        near &= hits[:, :-1] != hits[:, 1:]
    chosen = np.zeros(run[-1, -1] + 1, dtype=bool)
    chosen[run[:, 1:][near]] = True
    members = np.flatnonzero(chosen[run])
    owner = members // scores.shape[1]
    candidates = positions.ravel()[members]
    exact = pair_scores(gallery.vectors, candidates, search.queries, rows[owner], gallery.metric)
    error = np.abs(exact - scores.ravel()[members])
    np.maximum.at(seen, owner, np.where(np.isfinite(error), error, 0))
    order = np.lexsort((gallery.ids[candidates], -exact, run.ravel()[members]))
    np.put(scores, members, exact[order])
    np.put(positions, members, candidates[order])
    return seen
