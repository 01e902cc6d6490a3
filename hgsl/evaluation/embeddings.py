"""Retrieval scores of embeddings, in one call."""

from __future__ import annotations  # so that help() shows the names of long types

from collections.abc import Sequence

import torch

from hgsl.evaluation.knn.vectors import Array
from hgsl.evaluation.ranking import rank
from hgsl.evaluation.result import RetrievalResult
from hgsl.evaluation.task import make_task


def evaluate_embeddings(
    embeddings: Array,
    labels: Array,
    ks: int | Sequence[int] = (1, 2, 4, 8),
    *,
    ids: Array | None = None,
    groups: Array | None = None,
    is_query: Array | None = None,
    is_gallery: Array | None = None,
    gallery_embeddings: Array | None = None,
    gallery_labels: Array | None = None,
    gallery_ids: Array | None = None,
    gallery_groups: Array | None = None,
    metric: str = "cosine",
    index: str = "Flat",
    cluster: bool = False,
    device: torch.device | str = "cpu",
    max_memory: int = 1 << 30,
    progress: bool = False,
) -> RetrievalResult:
    """Searches every query's nearest images in the gallery and returns the retrieval scores.

    Without a gallery, each image is searched among all the others. A gallery image with the query's id is never a
    neighbor of that query, so a query cannot find itself; a duplicate image under another id can be found.

    Args:
        embeddings: (Q, D) query vectors, any float dtype, NumPy (also memory-mapped) or torch.
        labels: (Q,) integers, or class names as text.
        ks: The K of Recall@K, Precision@K and mAP@K, each at least 1; MRR uses the max(ks) nearest.
        ids: (Q,) integers that name the images; row numbers by default.
        groups: (Q,) integers, such as a camera's number: an image with both the label and the group of a query is not
            a neighbor of that query. Any 64-bit number is a group; an image without one takes a number of its own.
        is_query: (Q,) bool, the rows that are queries, where there is no separate gallery; all by default.
        is_gallery: (Q,) bool, the rows that are searched, likewise.
        gallery_embeddings: (N, D) gallery vectors; with them come ``gallery_labels`` and, where the gallery may hold
            the queries themselves, ``ids`` and ``gallery_ids``.
        metric: ``cosine``, ``inner_product`` or ``l2``.
        index: ``Flat`` is exact; any other FAISS factory string is approximate, such as ``IVF4096,Flat nprobe=32``.
        cluster: Whether to add NMI and AMI of a k-means clustering of the queries.
        device: Device of an exact search; each gives the same neighbors.
        max_memory: Bytes that the search may use beyond the embeddings (and beyond an approximate index); on a GPU,
            also half of what is free there.
        progress: Whether to show a progress bar on stderr, if that is a terminal.

    Raises:
        InputError: Shapes disagree, a vector is not finite or is zero, or no query has a match in the gallery.
    """
    task = make_task(
        embeddings,
        labels,
        ids=ids,
        groups=groups,
        is_query=is_query,
        is_gallery=is_gallery,
        gallery_embeddings=gallery_embeddings,
        gallery_labels=gallery_labels,
        gallery_ids=gallery_ids,
        gallery_groups=gallery_groups,
        metric=metric,
        device=device,
    )
    return rank(task, ks, top=0, index=index, cluster=cluster, max_memory=max_memory, progress=progress).result
