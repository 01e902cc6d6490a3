"""k-reciprocal re-ranking: images that have each other among their nearest are moved up."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from hgsl.common.errors import InputError
from hgsl.evaluation.knn.knn import k_nearest
from hgsl.evaluation.knn.order import pair_scores
from hgsl.evaluation.knn.vectors import Ints, open_vectors
from hgsl.evaluation.task import RetrievalTask

REORDER_DEPTH = 100  # how many neighbors are reordered
Reorder = Callable[[Ints, Ints], Ints]  # query rows (B,) and their neighbors (B, K) -> the neighbors, reordered


def k_reciprocal(
    task: RetrievalTask,
    k1: int = 20,
    k2: int = 6,
    weight: float = 0.3,
    depth: int = REORDER_DEPTH,
    max_memory: int = 1 << 30,
) -> Reorder:
    """Returns a function that reorders the first ``depth`` neighbors of queries; those after them stay.

    With N(p, k) the k nearest of image p and p itself, R(p, k) = {g in N(p, k): p in N(g, k)}. R*(p) is R(p, k1),
    joined with every R(q, k1 / 2), q in R(p, k1), that has more than two thirds of its images in R(p, k1). V_p weighs
    the images of R*(p) by exp(-d), sums to 1, and is averaged over the k2 nearest of p (p is the first of them). The
    new distance is

        (1 - weight) (1 - sum min(V_p, V_g) / sum max(V_p, V_g)) + weight d(p, g),    d = 1 - cosine similarity.

    Neighbors are looked for among gallery and queries together, without labels. Memory grows with their number times
    k1, not with its square.

    Raises:
        InputError: A parameter is out of range, or the task's metric is not ``cosine``.

    Source: Zhong, Zheng, Cao, Li, "Re-ranking Person Re-identification with k-reciprocal Encoding", CVPR 2017.
    """
    if task.metric != "cosine":
        raise InputError(f"re-ranking needs cosine similarities, but the metric is {task.metric!r}")
    if min(k1, k2, depth) < 1 or not 0 <= weight <= 1:
        raise InputError(f"re-ranking needs k1, k2, depth >= 1 and 0 <= weight <= 1, found {(k1, k2, depth, weight)}")
    everything, own = _together(task)
    nearest = _nearest(everything, max(k1, k2), max_memory)
    encoding = _encoding(everything, nearest, k1, k2)

    def reorder(rows: Ints, positions: Ints) -> Ints:
        reordered = positions.copy()
        for line, row in enumerate(rows):
            found = positions[line, :depth]
            found = found[found >= 0]
            similarity = pair_scores(task.gallery, found, task.queries, np.full(len(found), row), task.metric)
            distance = (1 - weight) * _jaccard(encoding, own[row], found) + weight * (1 - np.float64(similarity))
            reordered[line, : len(found)] = found[np.lexsort((task.gallery_ids[found], distance))]
        return reordered

    return reorder


def _together(task: RetrievalTask) -> tuple[RetrievalTask, Ints]:
    """The gallery, then the queries that are not in it, as one set searched in itself; and each query's row there."""
    order = np.argsort(task.gallery_ids, kind="stable")
    place = np.searchsorted(task.gallery_ids[order], task.query_ids).clip(max=len(order) - 1)
    own = np.where(task.gallery_ids[order[place]] == task.query_ids, order[place], -1)
    apart = np.flatnonzero(own < 0)
    own[apart] = len(task.gallery) + np.arange(len(apart))
    vectors = task.gallery
    if len(apart):
        rows = [task.gallery.rows(slice(None)), task.queries.rows(apart)]
        vectors = open_vectors(np.concatenate(rows))
    ids = np.arange(len(vectors))
    ones = np.ones(len(vectors), dtype=np.int64)
    return RetrievalTask(vectors, ones, ids, vectors, ones, ids, ((ids, ids),), ones, task.metric, task.device), own


def _nearest(task: RetrievalTask, count: int, max_memory: int) -> Ints:
    """The rows of N(p, count), p itself first, (M, count + 1); -1 where there are fewer images."""
    gallery = task.search_gallery(max_memory)
    nearest = np.empty((len(task.queries), count + 1), dtype=np.int64)
    nearest[:, 0] = np.arange(len(nearest))
    depths = np.full(len(nearest), count)
    for rows, positions in k_nearest(gallery, task.queries, depths, excluded=task.excluded, max_memory=max_memory):
        nearest[rows, 1:] = positions
    return nearest


def _encoding(task: RetrievalTask, nearest: Ints, k1: int, k2: int) -> sparse.csr_array:
    near, nearer = _reciprocal(nearest, k1), _reciprocal(nearest, max(1, round(k1 / 2)))
    shared = (near @ nearer.T).multiply(near).tocoo()  # [p, q]: how many of R(q, k1 / 2) are in R(p, k1)
    sizes = np.diff(nearer.indptr)
    joins = shared.data > 2 / 3 * sizes[shared.col]
    joined = sparse.csr_array((np.ones(joins.sum()), (shared.row[joins], shared.col[joins])), shape=near.shape)
    members = (near + joined @ nearer).tocoo()
    similarity = pair_scores(task.gallery, members.col, task.queries, members.row, task.metric)
    weights = sparse.csr_array((np.exp(np.float64(similarity) - 1), (members.row, members.col)), shape=near.shape)
    weights = sparse.diags_array(1 / weights.sum(axis=1)) @ weights
    mean = _adjacency(nearest[:, :k2])
    return (sparse.diags_array(1 / mean.sum(axis=1)) @ mean @ weights).tocsr()


def _reciprocal(nearest: Ints, k: int) -> sparse.csr_array:
    links = _adjacency(nearest[:, : k + 1])
    return links.multiply(links.T).tocsr()


def _adjacency(nearest: Ints) -> sparse.csr_array:
    rows = np.repeat(np.arange(len(nearest)), nearest.shape[1])
    columns = nearest.ravel()
    rows, columns = rows[columns >= 0], columns[columns >= 0]
    return sparse.csr_array((np.ones(len(rows)), (rows, columns)), shape=(len(nearest), len(nearest)))


def _jaccard(encoding: sparse.csr_array, own: int, others: Ints) -> NDArray[np.float64]:
    """1 - sum min / sum max of one row with others; each row sums to 1, so sum max = 2 - sum min."""
    mine = encoding[[own]].toarray()[0]
    theirs = encoding[others]
    smaller = np.minimum(mine[theirs.indices], theirs.data)
    lines = np.repeat(np.arange(len(others)), np.diff(theirs.indptr))
    shared = np.bincount(lines, smaller, minlength=len(others))
    return np.asarray(1 - shared / (2 - shared))
