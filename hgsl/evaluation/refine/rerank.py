"""k-reciprocal re-ranking: mutual nearest neighbors are moved up."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from hgsl.common.errors import InputError
from hgsl.evaluation.knn.knn import k_nearest
from hgsl.evaluation.knn.order import pair_scores
from hgsl.evaluation.knn.vectors import Ints, open_vectors
from hgsl.evaluation.task import RetrievalTask

Reorder = Callable[[Ints, Ints], Ints]  # query rows (B,) and their neighbors (B, K) -> the neighbors, reordered


@dataclass(frozen=True)
class KReciprocal:
    """k-reciprocal re-ranking of the first ``depth`` neighbors of each query; those after them keep their ranks.

    With N(p, k) the k nearest of image p and p itself, R(p, k) = {g in N(p, k): p in N(g, k)}. R*(p) is R(p, k1),
    joined with every R(q, k1 / 2), q in R(p, k1), that has more than two thirds of its images in R(p, k1). V_p weighs
    the images of R*(p) by exp(-d), sums to 1, and is averaged over the k2 nearest of p (p is the first of them). The
    new distance is

        (1 - weight) (1 - sum min(V_p, V_g) / sum max(V_p, V_g)) + weight d(p, g),    d = 1 - cosine similarity.

    N is taken among gallery and queries together, without labels. Memory grows with their number times k1, not with
    its square.

    Attributes:
        k1: Size of a neighborhood.
        k2: How many neighbors an encoding V is averaged over.
        weight: Weight of the original distance.
        depth: How many neighbors are reordered; scores do not depend on how many more were searched for.

    Raises:
        InputError: A parameter is out of range.

    Source: Zhong, Zheng, Cao, Li, "Re-ranking Person Re-identification with k-reciprocal Encoding", CVPR 2017.
    """

    k1: int = 20
    k2: int = 6
    weight: float = 0.3
    depth: int = 100

    def __post_init__(self) -> None:
        if min(self.k1, self.k2, self.depth) < 1 or not 0 <= self.weight <= 1:
            raise InputError(f"re-ranking needs k1, k2, depth >= 1 and 0 <= weight <= 1, found {self}")

    def __str__(self) -> str:
        return f"k-reciprocal re-ranking of the first {self.depth}, k1 {self.k1}, k2 {self.k2}, weight {self.weight:g}"

    @property
    def neighborhood(self) -> int:
        """How many neighbors of every image are needed."""
        return max(self.k1, self.k2)

    def check(self, task: RetrievalTask) -> None:
        """Raises an InputError if the task's metric is not ``cosine``."""
        if task.metric != "cosine":
            raise InputError(f"re-ranking needs cosine similarities, but the metric is {task.metric!r}")

    def fit(self, task: RetrievalTask, nearest: Ints | None = None, max_memory: int = 1 << 30) -> Reorder:
        """Returns a function that reorders neighbors of the task's queries.

        Args:
            task: The task whose neighbors are reordered.
            nearest: (N, neighborhood) the nearest gallery rows of each gallery image, itself excluded, if they are
                known: then queries and gallery must be the same images, row by row. By default the union of gallery
                and queries is searched for them.
            max_memory: Bytes that this search may use.

        Raises:
            InputError: The task's metric is not ``cosine``.
        """
        self.check(task)
        if nearest is None:
            union, query_row = _union(task)
            nearest = _search_neighborhoods(union, self.neighborhood, max_memory)
        else:
            union, query_row = task, np.arange(len(task.queries))
        itself = np.arange(len(nearest))[:, None]
        encoding = _encoding(union, np.hstack([itself, nearest]), self.k1, self.k2)

        def reorder(rows: Ints, positions: Ints) -> Ints:
            reordered = positions.copy()
            for line, row in enumerate(rows):
                head = positions[line, : self.depth]
                head = head[head >= 0]
                similarity = pair_scores(task.gallery, head, task.queries, np.full(len(head), row), task.metric)
                jaccard = _jaccard_distance(encoding, query_row[row], head)
                distance = (1 - self.weight) * jaccard + self.weight * (1 - np.float64(similarity))
                reordered[line, : len(head)] = head[np.lexsort((task.gallery_ids[head], distance))]
            return reordered

        return reorder


def searches_itself(task: RetrievalTask) -> bool:
    """Whether every gallery image is a query too, row by row, and only itself is excluded.

    Then the neighbors of the queries are the neighborhoods that re-ranking needs.
    """
    if task.queries is not task.gallery or len(task.excluded) != 1:
        return False
    same_ids = np.array_equal(task.query_ids, task.gallery_ids)
    return same_ids and len(np.unique(task.gallery_ids)) == len(task.gallery)


def _union(task: RetrievalTask) -> tuple[RetrievalTask, Ints]:
    """The gallery, then the queries that are not in it, as one set searched in itself; and each query's row there."""
    order = np.argsort(task.gallery_ids, kind="stable")
    index = np.searchsorted(task.gallery_ids[order], task.query_ids).clip(max=len(order) - 1)
    query_row = np.where(task.gallery_ids[order[index]] == task.query_ids, order[index], -1)
    added = np.flatnonzero(query_row < 0)
    query_row[added] = len(task.gallery) + np.arange(len(added))
    vectors = task.gallery
    if len(added):
        rows = [task.gallery.rows(slice(None)), task.queries.rows(added)]
        vectors = open_vectors(np.concatenate(rows))
    ids = np.arange(len(vectors))
    ones = np.ones(len(vectors), dtype=np.int64)
    union = RetrievalTask(vectors, ones, ids, vectors, ones, ids, ((ids, ids),), ones, task.metric, task.device)
    return union, query_row


def _search_neighborhoods(task: RetrievalTask, count: int, max_memory: int) -> Ints:
    """The ``count`` nearest of each image, (M, count); -1 where there are fewer images."""
    gallery = task.search_gallery(max_memory)
    nearest = np.empty((len(task.queries), count), dtype=np.int64)
    depths = np.full(len(nearest), count)
    for rows, positions in k_nearest(gallery, task.queries, depths, excluded=task.excluded, max_memory=max_memory):
        nearest[rows] = positions
    return nearest


def _encoding(task: RetrievalTask, nearest: Ints, k1: int, k2: int) -> sparse.csr_array:
    """V of every image, (M, M) sparse; ``nearest`` has an image itself in its first column."""
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


def _jaccard_distance(encoding: sparse.csr_array, row: int, others: Ints) -> NDArray[np.float64]:
    """1 - sum min / sum max of one row with others; each row sums to 1, so sum max = 2 - sum min."""
    one = encoding[[row]].toarray()[0]
    many = encoding[others]
    smaller = np.minimum(one[many.indices], many.data)
    lines = np.repeat(np.arange(len(others)), np.diff(many.indptr))
    shared = np.bincount(lines, smaller, minlength=len(others))
    return np.asarray(1 - shared / (2 - shared))
