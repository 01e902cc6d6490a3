"""Query expansion and database augmentation: weighted means of a vector and its neighbors."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hgsl.common.errors import InputError
from hgsl.common.progress import progress_bar
from hgsl.evaluation.knn.knn import k_nearest
from hgsl.evaluation.knn.order import neighbor_scores
from hgsl.evaluation.knn.vectors import Floats, Ints, Vectors, open_vectors
from hgsl.evaluation.task import RetrievalTask


def expand_queries(
    task: RetrievalTask, count: int = 10, alpha: float = 3.0, *, max_memory: int = 1 << 30, progress: bool = False
) -> RetrievalTask:
    """alpha-QE: each query q becomes the direction of q + sum over its ``count`` nearest g of s(q, g)^alpha g.

    s is the cosine similarity, 0 where it is negative. No label is used, and the query itself is excluded.

    Source: Radenovic, Tolias, Chum, "Fine-tuning CNN Image Retrieval with No Human Annotation", TPAMI 2019.
    """
    return replace(task, queries=open_vectors(_mixed(task, count, alpha, max_memory, "expand queries", progress)))


def augment_gallery(
    task: RetrievalTask, count: int = 10, alpha: float = 3.0, *, max_memory: int = 1 << 30, progress: bool = False
) -> RetrievalTask:
    """DBA: each gallery vector is replaced in the same way by a mean with its ``count`` nearest in the gallery.

    Where the queries are gallery images themselves, they keep their vectors.

    Source: Arandjelovic, Zisserman, "Three Things Everyone Should Know to Improve Object Retrieval", CVPR 2012.
    """
    within = replace(
        task, queries=task.gallery, query_labels=task.gallery_labels, query_ids=task.gallery_ids,
        excluded=((task.gallery_ids, task.gallery_ids),), relevant=np.ones(len(task.gallery), dtype=np.int64),
    )  # fmt: skip
    return replace(task, gallery=open_vectors(_mixed(within, count, alpha, max_memory, "augment gallery", progress)))


def _mixed(task: RetrievalTask, count: int, alpha: float, max_memory: int, name: str, progress: bool) -> Floats:
    if task.metric != "cosine":
        raise InputError(f"expansion weighs neighbors by cosine similarity, but the metric is {task.metric!r}")
    if count < 1 or not 0 <= alpha < math.inf:
        raise InputError(
            f"expansion needs at least 1 neighbor and a finite alpha of at least 0, found {count} and {alpha}"
        )
    gallery = task.search_gallery(max_memory)
    mixed = np.empty((len(task.queries), task.queries.width), dtype=np.float32)
    depths = np.full(len(mixed), min(count, len(task.gallery)))
    with progress_bar(shown=progress, total=len(mixed), desc=name, unit="image") as bar:
        for rows, positions in k_nearest(gallery, task.queries, depths, excluded=task.excluded, max_memory=max_memory):
            weights = neighbor_scores(task.gallery, positions, task.queries, rows, task.metric).clip(min=0) ** alpha
            weights[positions < 0] = 0  # alpha 0 gives every neighbor weight 1, but padding none
            mixed[rows] = _weighted(task.queries.rows(rows), task.gallery, positions, weights)
            bar.update(len(rows))
    return mixed


def _weighted(vectors: Floats, gallery: Vectors, positions: Ints, weights: NDArray[Any]) -> Floats:
    total = vectors.astype(np.float64)
    for rank in range(positions.shape[1]):
        total += weights[:, rank, None] * gallery.rows(positions[:, rank])
    return (total / np.linalg.norm(total, axis=1, keepdims=True)).astype(np.float32)
