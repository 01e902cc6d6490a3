"""The order of neighbors: its rule, applied to the few candidates whose order is uncertain.

Neighbors are sorted by descending score, equal scores by ascending gallery id, where the score of a pair is computed in
float64 from these two vectors alone and rounded to float32.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hgsl.evaluation.knn.backends import Backend
from hgsl.evaluation.knn.exclusion import KeyPair
from hgsl.evaluation.knn.vectors import Floats, Ints, Vectors

PAIRS = 256  # pairs scored at a time: their float64 vectors stay in the processor's cache


@dataclass(frozen=True)
class Gallery:
    """The images that are searched.

    Attributes:
        vectors: (N, D).
        ids: (N,) integers; the lower id comes first among equal scores.
        metric: ``cosine``, ``inner_product`` or ``l2``.
        backend: The k-NN backend over these vectors.
        exact: Whether the backend compares with every vector.
        concurrency: Blocks of queries in work at a time, more than 1 if the backend computes on another device: it
            searches one block while threads of the host put others in order.
    """

    vectors: Vectors
    ids: Ints
    metric: str
    backend: Backend
    exact: bool = True
    concurrency: int = 1


@dataclass(frozen=True)
class KnnRequest:
    """The arguments of ``k_nearest``, which documents them."""

    gallery: Gallery
    queries: Vectors
    excluded: Sequence[KeyPair]
    labels: KeyPair | None
    ordered: int
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


def neighbor_scores(gallery: Vectors, positions: Ints, queries: Vectors, rows: Ints, metric: str) -> Floats:
    """Returns the (B, K) scores, by the rule, of the neighbors ``positions`` (B, K) of query rows ``rows`` (B,)."""
    flat = np.repeat(rows, positions.shape[1])
    return pair_scores(gallery, positions.ravel(), queries, flat, metric).reshape(positions.shape)


def settle(request: KnnRequest, rows: Ints, scores: Floats, positions: Ints, noise: Floats) -> Floats:
    """Sorts, in place, each run of candidates closer than the noise; returns the (B,) largest error of a score."""
    errors = np.zeros(len(rows), dtype=np.float32)
    lines = _uncertain_lines(request, rows, scores, positions, noise)
    if not len(lines):
        return errors
    line_scores, line_positions = scores[lines], positions[lines]
    line, column, run = _unsettled_runs(request, rows[lines], line_scores, line_positions, noise[lines])
    candidates = line_positions[line, column]
    gallery = request.gallery
    exact = pair_scores(gallery.vectors, candidates, request.queries, rows[lines[line]], gallery.metric)
    with np.errstate(invalid="ignore"):  # padding: inf - inf
        error = np.abs(exact - line_scores[line, column])
    np.maximum.at(errors, lines[line], np.where(np.isfinite(error), error, 0))
    order = np.lexsort((gallery.ids[candidates], -exact, run))
    line_scores[line, column], line_positions[line, column] = exact[order], candidates[order]
    scores[lines], positions[lines] = line_scores, line_positions
    return errors


def _uncertain_lines(request: KnnRequest, rows: Ints, scores: Floats, positions: Ints, noise: Floats) -> Ints:
    """The rows in which the order of two adjacent candidates is uncertain and matters."""
    if request.labels is None:
        return np.flatnonzero(_close(scores[:, :-1], scores[:, 1:], noise[:, None]).any(axis=1))
    lower = scores[:, 1 : request.ordered + 1]
    leading = np.flatnonzero(_close(scores[:, : lower.shape[1]], lower, noise[:, None]).any(axis=1))
    hits = _hits(request, rows, positions)
    line, column = np.nonzero(hits[:, :-1] != hits[:, 1:])  # few, so only their scores are compared
    return np.union1d(leading, line[_close(scores[line, column], scores[line, column + 1], noise[line])])


def _unsettled_runs(
    request: KnnRequest, rows: Ints, scores: Floats, positions: Ints, noise: Floats
) -> tuple[Ints, Ints, NDArray[np.int32]]:
    """Row, column and number of the run of each candidate whose run must be sorted.

    A run is a chain of adjacent candidates each closer to the next than the noise.
    """
    near = _close(scores[:, :-1], scores[:, 1:], noise[:, None])
    matters = near
    if request.labels is not None:
        hits = _hits(request, rows, positions)
        leading = np.arange(near.shape[1]) < request.ordered
        matters = near & (leading | (hits[:, :-1] != hits[:, 1:]))
    first = np.ones(scores.shape, dtype=bool)
    np.logical_not(near, out=first[:, 1:])
    run = np.cumsum(first, dtype=np.int32).reshape(scores.shape) - 1
    unsettled = np.zeros(run[-1, -1] + 1, dtype=bool)
    unsettled[run[:, 1:][matters]] = True
    line, column = np.nonzero(unsettled[run])
    return line, column, run[unsettled[run]]


def _close(higher: Floats, lower: Floats, noise: Floats) -> NDArray[np.bool_]:
    with np.errstate(invalid="ignore"):  # padding: inf - inf
        return np.asarray(higher - lower <= 2 * noise)


def _hits(request: KnnRequest, rows: Ints, positions: Ints) -> NDArray[np.bool_]:
    assert request.labels is not None
    query_labels, gallery_labels = request.labels
    return (gallery_labels[positions] == query_labels[rows, None]) & (positions >= 0)
