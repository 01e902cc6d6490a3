"""Near duplicates by embedding: pairs of similar images, and a threshold calibrated on altered copies of the images."""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from hgsl.common.errors import InputError
from hgsl.evaluation.knn.knn import k_nearest
from hgsl.evaluation.knn.order import neighbor_scores
from hgsl.evaluation.knn.vectors import Floats, Ints
from hgsl.evaluation.task import make_task

NEIGHBORS = 8  # of an image, among which its duplicates are found; larger groups connect through several images
EXACT = 50_000  # images up to which the search is exact
RECALL = 0.95  # share of altered copies that the threshold accepts
CONFUSED = 0.01  # share of images whose nearest image of another class lies above the threshold, about, at most
EQUAL = 1 - 1e-4  # highest threshold: equal images are duplicates, whatever their classes and the rounding


class Neighborhood(NamedTuple):
    """The nearest images of every image: rows (N, K), -1 where there is none, and cosine similarities (N, K)."""

    rows: Ints
    scores: Floats


class CopyThreshold(NamedTuple):
    """A similarity from which two images count as near duplicates.

    Attributes:
        value: The similarity.
        recall: Share of altered copies that are at least so similar to their original.
        confused: Share of images for which an image of another class is at least so similar.
    """

    value: float
    recall: float
    confused: float


def nearest_images(
    embeddings: Floats, *, device: torch.device | str = "cpu", max_memory: int = 1 << 30
) -> Neighborhood:
    """Searches each image's ``NEIGHBORS`` nearest others: exactly up to ``EXACT`` images, else by an inverted file."""
    count = len(embeddings)
    task = make_task(embeddings, np.zeros(count, dtype=np.int64), device=device)  # no label is used
    gallery = task.search_gallery(max_memory, "Flat" if count <= EXACT else f"IVF{int(4 * count**0.5)},Flat nprobe=16")
    depth = min(NEIGHBORS, max(1, count - 1))
    neighbors = Neighborhood(np.full((count, depth), -1), np.full((count, depth), -np.inf, np.float32))
    depths = np.full(count, depth)
    for rows, positions in k_nearest(gallery, task.queries, depths, excluded=task.excluded, max_memory=max_memory):
        neighbors.rows[rows] = positions
        neighbors.scores[rows] = neighbor_scores(task.gallery, positions, task.queries, rows, task.metric)
    return neighbors


def calibrate_copies(
    copies: Floats, neighbors: Neighborhood, labels: Ints, value: float | None = None
) -> CopyThreshold:
    """The similarity that ``RECALL`` of the altered copies reach, or a higher one that few other classes reach.

    It is at most ``EQUAL``, so that equal images are found in any number of classes.

    Args:
        copies: (M,) similarities of altered copies to their originals.
        neighbors: The nearest images of all N images.
        labels: (N,) their classes.
        value: A similarity to measure in place of the calibrated one.

    Raises:
        InputError: There are no copies, or ``value`` is no similarity.
    """
    if not len(copies):
        raise InputError("no image can be read: there is nothing to calibrate a similarity on")
    is_other = (neighbors.rows >= 0) & (labels[neighbors.rows] != labels[:, None])
    others = np.where(is_other, neighbors.scores, -np.inf).max(axis=1)  # of the nearest image of another class
    if value is None:
        value = float(np.quantile(copies, 1 - RECALL, method="lower"))
        allowed = 2 + int(CONFUSED * len(others))  # a duplicate of two classes is the nearest of both its images
        if allowed < len(others):
            value = max(value, float(np.nextafter(np.sort(others)[::-1][allowed], np.float32(2))))
        value = min(value, EQUAL)
    if not -1 <= value <= 1:
        raise InputError(f"a cosine similarity lies between -1 and 1, found {value}")
    return CopyThreshold(value, float((copies >= value).mean()), float((others >= value).mean()))


def similar_pairs(neighbors: Neighborhood, threshold: float) -> tuple[NDArray[np.int64], Floats]:
    """Pairs (P, 2) of images of at least this similarity, each once and in ascending order, and their similarities."""
    image, rank = np.nonzero((neighbors.rows >= 0) & (neighbors.scores >= threshold))
    other, scores = neighbors.rows[image, rank], neighbors.scores[image, rank]
    pairs = np.sort(np.stack([image, other], axis=1), axis=1)
    unique, first = np.unique(pairs, axis=0, return_index=True)
    return unique, scores[first]
