"""What to look at in a result: the worst queries, confused classes, suspicious pairs, and a map of the embeddings."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from hgsl.evaluation.knn.knn import k_nearest
from hgsl.evaluation.knn.order import neighbor_scores
from hgsl.evaluation.knn.vectors import Floats, Ints
from hgsl.evaluation.refine.rerank import REORDER_DEPTH, Reorder
from hgsl.evaluation.task import RetrievalTask

EACH = 3
MAP_IMAGES = 2000  # t-SNE takes seconds for so many


@dataclass(frozen=True)
class Neighbors:
    """The nearest gallery images of every query that counts.

    Attributes:
        ids: (Q, K) ids of gallery images, best first; -1 where the gallery has no more.
        labels: (Q, K) their labels.
        scores: (Q, K) their scores.
        hits: (Q, K) whether they have the query's label.
    """

    ids: Ints
    labels: Ints
    scores: Floats
    hits: NDArray[np.bool_]


def nearest(
    task: RetrievalTask,
    count: int,
    *,
    reorder: Callable[[RetrievalTask], Reorder] | None = None,
    max_memory: int = 1 << 30,
) -> Neighbors:
    """Returns the ``count`` nearest of each query that counts, in the order of ``RetrievalResult.query_ids``.

    Args:
        reorder: As for ``evaluate_task``: what it moves up within the first ``REORDER_DEPTH`` is shown.
    """
    task = task.subset(task.answerable)
    gallery = task.search_gallery(max_memory)
    rearrange = None if reorder is None else reorder(task)
    found = np.empty((len(task.queries), min(count, len(task.gallery))), dtype=np.int64)
    scores = np.empty(found.shape, dtype=np.float32)
    depths = np.full(len(found), found.shape[1] if reorder is None else max(count, REORDER_DEPTH))
    for rows, positions in k_nearest(gallery, task.queries, depths, excluded=task.excluded, max_memory=max_memory):
        if rearrange is not None:
            positions = rearrange(rows, positions)
        positions = positions[:, : found.shape[1]]
        found[rows] = positions
        scores[rows] = neighbor_scores(task.gallery, positions, task.queries, rows, task.metric)
    labels = task.gallery_labels[found]
    hits = (labels == task.query_labels[:, None]) & (found >= 0)
    return Neighbors(np.where(found < 0, -1, task.gallery_ids[found]), labels, scores, hits)


def confusions(query_labels: Ints, neighbors: Neighbors) -> list[tuple[int, int, int]]:
    """Returns (class, class of the nearest image, how often), most often first, where the nearest image is wrong."""
    wrong = ~neighbors.hits[:, 0] & (neighbors.ids[:, 0] >= 0)
    pairs = np.stack([query_labels[wrong], neighbors.labels[wrong, 0]], axis=1)
    if not len(pairs):
        return []
    kinds, counts = np.unique(pairs, axis=0, return_counts=True)
    order = np.lexsort((kinds[:, 1], kinds[:, 0], -counts))
    return [(*kinds[i].tolist(), int(counts[i])) for i in order]


def suspicious_pairs(query_ids: Ints, neighbors: Neighbors, limit: int = 48) -> list[tuple[int, int, float]]:
    """Returns (query id, gallery id, score) of the most similar images of different labels.

    Each pair comes once, and no image in more than ``EACH`` pairs, so that one wrong label does not fill the list.

    Two images that look the same to the network and are labeled differently are often a wrong label, or one photo
    filed twice.
    """
    rows, columns = np.nonzero(~neighbors.hits & (neighbors.ids >= 0))
    scores = neighbors.scores[rows, columns]
    pairs: dict[tuple[int, int], float] = {}
    times: Counter[int] = Counter()
    for i in np.argsort(-scores, kind="stable"):
        if len(pairs) == limit:
            break
        one, other = int(query_ids[rows[i]]), int(neighbors.ids[rows[i], columns[i]])
        if (other, one) not in pairs and max(times[one], times[other]) < EACH:
            pairs[one, other] = float(scores[i])
            times.update((one, other))
    return [(*pair, score) for pair, score in pairs.items()]


def embedding_map(task: RetrievalTask, *, limit: int = MAP_IMAGES, seed: int = 0) -> tuple[Ints, NDArray[np.float64]]:
    """Returns rows of the queries that count, (M,), and their places in the plane, (M, 2) in [0, 1], by t-SNE.

    With more than ``limit`` queries a seeded sample is shown. Near points are similar images; distances between far
    groups mean little.

    Source: van der Maaten, Hinton, "Visualizing Data using t-SNE", JMLR 2008.
    """
    rows = task.answerable
    shown = np.arange(len(rows))
    if len(rows) > limit:
        shown = np.sort(np.random.default_rng(seed).choice(len(rows), limit, replace=False))
    vectors = task.queries.rows(rows[shown])
    points = np.zeros((len(shown), 2))
    if len(shown) >= 5:
        vectors = PCA(min(50, *vectors.shape), random_state=seed).fit_transform(vectors)
        perplexity = min(30.0, (len(shown) - 1) / 3)
        points = TSNE(perplexity=perplexity, init="pca", random_state=seed, max_iter=500).fit_transform(vectors)
    low, high = points.min(axis=0), points.max(axis=0)
    return shown, (points - low) / np.maximum(high - low, 1e-12)
