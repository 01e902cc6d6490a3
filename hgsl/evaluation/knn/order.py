"""The rule that orders neighbors, and the few pairs that must be scored by it.

Neighbors are sorted by falling score, equal scores by rising gallery id, where the score of a pair is computed in
float64 from these two vectors alone and rounded to float32.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hgsl.evaluation.knn.backends import Proposer
from hgsl.evaluation.knn.exclusion import KeyPair
from hgsl.evaluation.knn.vectors import Floats, Ints, Vectors

PAIRS = 256  # pairs scored at a time: their float64 vectors stay in the processor's cache


@dataclass(frozen=True)
class Gallery:
    """What is searched: vectors, their ids, and who proposes neighbors.

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


@dataclass(frozen=True)
class Search:
    """The arguments of ``nearest_blocks``."""

    gallery: Gallery
    queries: Vectors
    excluded: Sequence[KeyPair]
    labels: KeyPair | None
    max_memory: int


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


def neighbor_scores(gallery: Gallery, queries: Vectors, rows: Ints, positions: Ints) -> Floats:
    """Returns the (B, K) scores, by the rule, of the neighbors ``positions`` (B, K) of query rows ``rows`` (B,)."""
    flat = np.repeat(rows, positions.shape[1])
    return pair_scores(gallery.vectors, positions.ravel(), queries, flat, gallery.metric).reshape(positions.shape)


def settle(search: Search, rows: Ints, scores: Floats, positions: Ints, noise: Floats) -> Floats:
    """Sorts, in place, each run of candidates closer than the noise; returns the (B,) largest error seen in a score."""
    seen = np.zeros(len(rows), dtype=np.float32)
    lines = _uncertain(search, rows, scores, positions, noise)
    if not len(lines):
        return seen
    part, found = scores[lines], positions[lines]
    near, matters = _near(search, rows[lines], part, found, noise[lines])
    first = np.ones(part.shape, dtype=bool)
    np.logical_not(near, out=first[:, 1:])
    run = np.cumsum(first, dtype=np.int32).reshape(part.shape) - 1  # number of the run a candidate is in
    chosen = np.zeros(run[-1, -1] + 1, dtype=bool)
    chosen[run[:, 1:][matters]] = True
    owner, column = np.nonzero(chosen[run])
    candidates = found[owner, column]
    gallery = search.gallery
    exact = pair_scores(gallery.vectors, candidates, search.queries, rows[lines[owner]], gallery.metric)
    error = np.abs(exact - part[owner, column])
    np.maximum.at(seen, lines[owner], np.where(np.isfinite(error), error, 0))
    order = np.lexsort((gallery.ids[candidates], -exact, run[owner, column]))
    part[owner, column], found[owner, column] = exact[order], candidates[order]
    scores[lines], positions[lines] = part, found
    return seen


def _uncertain(search: Search, rows: Ints, scores: Floats, positions: Ints, noise: Floats) -> Ints:
    """The lines in which the order of two neighboring candidates is uncertain and matters."""
    if search.labels is None:
        return np.flatnonzero(_close(scores[:, :-1], scores[:, 1:], noise[:, None]).any(axis=1))
    hits = _hits(search, rows, positions)
    line, column = np.nonzero(hits[:, :-1] != hits[:, 1:])  # few, so only their scores are compared
    return np.unique(line[_close(scores[line, column], scores[line, column + 1], noise[line])])


def _near(
    search: Search, rows: Ints, scores: Floats, positions: Ints, noise: Floats
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Whether candidates and their right neighbors are closer than the noise, and whether their order matters then."""
    near = _close(scores[:, :-1], scores[:, 1:], noise[:, None])
    if search.labels is None:
        return near, near
    hits = _hits(search, rows, positions)
    return near, near & (hits[:, :-1] != hits[:, 1:])


def _close(higher: Floats, lower: Floats, noise: Floats) -> NDArray[np.bool_]:
    with np.errstate(invalid="ignore"):  # padding: inf - inf
        return np.asarray(higher - lower <= 2 * noise)


def _hits(search: Search, rows: Ints, positions: Ints) -> NDArray[np.bool_]:
    assert search.labels is not None
    query_labels, gallery_labels = search.labels
    return (gallery_labels[positions] == query_labels[rows, None]) & (positions >= 0)
