"""Views of a ranking: confused classes, suspicious pairs, and a map of the embeddings."""

from collections import Counter
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from hgsl.common.extras import require
from hgsl.evaluation.knn.vectors import Ints
from hgsl.evaluation.neighbors import Neighbors
from hgsl.evaluation.task import RetrievalTask

PAIRS_PER_IMAGE = 3
MAP_IMAGES = 2000  # t-SNE takes seconds for so many; more take openTSNE, whose time grows with their number only


def confusions(query_labels: Ints, neighbors: Neighbors) -> list[tuple[int, int, int]]:
    """Returns (class, class of the nearest image, how often), most often first, where the nearest image is wrong."""
    wrong = neighbors.present[:, 0] & ~neighbors.hits[:, 0]
    pairs = np.stack([query_labels[wrong], neighbors.labels[wrong, 0]], axis=1)
    if not len(pairs):
        return []
    confused, counts = np.unique(pairs, axis=0, return_counts=True)
    order = np.lexsort((confused[:, 1], confused[:, 0], -counts))
    return [(*confused[i].tolist(), int(counts[i])) for i in order]


def suspicious_pairs(query_ids: Ints, neighbors: Neighbors, limit: int = 48) -> list[tuple[int, int, float]]:
    """Returns (query id, gallery id, score) of the most similar images of different labels.

    Each pair comes once, and no image in more than ``PAIRS_PER_IMAGE`` pairs, so that one wrong label does not fill the
    list.

    Two similar images of different labels often have a wrong label, or are one image under two labels.
    """
    rows, columns = np.nonzero(neighbors.present & ~neighbors.hits)
    scores = neighbors.scores[rows, columns]
    pairs: dict[tuple[int, int], float] = {}
    times: Counter[int] = Counter()
    for i in np.argsort(-scores, kind="stable"):
        if len(pairs) == limit:
            break
        one, other = int(query_ids[rows[i]]), int(neighbors.ids[rows[i], columns[i]])
        if (other, one) not in pairs and max(times[one], times[other]) < PAIRS_PER_IMAGE:
            pairs[one, other] = float(scores[i])
            times.update((one, other))
    return [(*pair, score) for pair, score in pairs.items()]


def embedding_map(task: RetrievalTask, *, limit: int = MAP_IMAGES, seed: int = 0) -> tuple[Ints, NDArray[np.float64]]:
    """Returns rows of a task's queries, (M,), and their coordinates in the plane, (M, 2) in [0, 1], by t-SNE.

    With more than ``limit`` queries a seeded sample is shown. Near points are similar images; distances between far
    groups mean little. More than ``MAP_IMAGES`` points are placed by openTSNE.

    Raises:
        InputError: openTSNE is needed and is not installed.

    Source: van der Maaten, Hinton, "Visualizing Data using t-SNE", JMLR 2008; Linderman et al., "Fast
    interpolation-based t-SNE", Nature Methods 2019.
    """
    rows = np.arange(len(task.queries))
    if len(rows) > limit:
        rows = np.sort(np.random.default_rng(seed).choice(len(rows), limit, replace=False))
    vectors = task.queries.rows(rows)
    points = np.zeros((len(rows), 2))
    if len(rows) >= 5:
        vectors = PCA(min(50, *vectors.shape), random_state=seed).fit_transform(vectors)
        place = _place_many if len(rows) > MAP_IMAGES else _place_few
        points = place(vectors, seed)
    low, high = points.min(axis=0), points.max(axis=0)
    return rows, (points - low) / np.maximum(high - low, 1e-12)


def _place_few(vectors: NDArray[Any], seed: int) -> NDArray[np.float64]:
    perplexity = min(30.0, (len(vectors) - 1) / 3)
    points: NDArray[np.float64] = TSNE(
        perplexity=perplexity, init="pca", random_state=seed, max_iter=500
    ).fit_transform(vectors)
    return points


def _place_many(vectors: NDArray[Any], seed: int) -> NDArray[np.float64]:
    require("map", f"a map of more than {MAP_IMAGES:,} images")
    placed = import_module("openTSNE").TSNE(perplexity=30, initialization="pca", random_state=seed).fit(vectors)
    return np.asarray(placed, np.float64)
