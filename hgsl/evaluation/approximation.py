"""The share of the exact neighbors that an approximate index finds."""

import numpy as np

from hgsl.evaluation.knn.knn import k_nearest
from hgsl.evaluation.knn.order import Gallery
from hgsl.evaluation.knn.vectors import Ints
from hgsl.evaluation.task import RetrievalTask

SAMPLE = 1000


def overlap(task: RetrievalTask, gallery: Gallery, k: int, max_memory: int) -> float:
    """Returns the mean share of the exact k nearest that ``gallery`` finds, on a seeded sample of queries."""
    count = len(task.queries)
    sample = task.subset(np.random.default_rng(0).choice(count, min(count, SAMPLE), replace=False))
    exact = _nearest(sample, sample.search_gallery(max_memory), k, max_memory)
    approximate = _nearest(sample, gallery, k, max_memory)
    shares = []
    for exact_row, approximate_row in zip(exact, approximate, strict=True):
        present = exact_row[exact_row >= 0]
        shares.append(len(np.intersect1d(present, approximate_row)) / max(1, len(present)))
    return float(np.mean(shares))


def _nearest(task: RetrievalTask, gallery: Gallery, k: int, max_memory: int) -> Ints:
    nearest = np.empty((len(task.queries), k), dtype=np.int64)
    depths = np.full(len(nearest), k)
    for rows, positions in k_nearest(gallery, task.queries, depths, excluded=task.excluded, max_memory=max_memory):
        nearest[rows] = positions
    return nearest
