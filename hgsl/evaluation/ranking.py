"""From embeddings and labels to retrieval scores."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from tqdm import tqdm

from hgsl.common.errors import InputError
from hgsl.evaluation import clustering, metrics
from hgsl.evaluation.knn.knn import k_nearest
from hgsl.evaluation.knn.order import Gallery
from hgsl.evaluation.knn.vectors import Array, Ints
from hgsl.evaluation.refine.rerank import Reorder
from hgsl.evaluation.result import RetrievalResult
from hgsl.evaluation.task import RetrievalTask, make_task

OVERLAP_QUERIES = 1000


def evaluate_embeddings(
    embeddings: Array,
    labels: Array,
    ks: Sequence[int] = (1, 2, 4, 8),
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
        labels: (Q,) integer labels.
        ks: The K of Recall@K, Precision@K and mAP@K, each at least 1; MRR looks at the max(ks) nearest.
        ids: (Q,) integers that name the images; row numbers by default.
        groups: (Q,) integers, such as a camera's number: an image with both the label and the group of a query is no
            neighbor of that query. Any 64-bit number is a group; an image without one takes a number of its own.
        is_query: (Q,) bool, which rows are queries where there is no gallery of its own; all by default.
        is_gallery: (Q,) bool, which rows are searched, likewise.
        gallery_embeddings: (N, D) gallery vectors; with them come ``gallery_labels`` and, where the gallery may hold
            the queries themselves, ``ids`` and ``gallery_ids``.
        metric: ``cosine``, ``inner_product`` or ``l2``.
        index: ``Flat`` is exact; any other FAISS factory string is approximate, such as ``IVF4096,Flat nprobe=32``.
        cluster: Whether to add NMI and AMI of a k-means clustering of the queries.
        device: Where the exact search runs; the same neighbors come out on each.
        max_memory: Bytes that the search may use beyond the embeddings (and beyond an approximate index).
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
    return evaluate_task(task, ks, index=index, cluster=cluster, max_memory=max_memory, progress=progress)


def evaluate_task(
    task: RetrievalTask,
    ks: Sequence[int] = (1, 2, 4, 8),
    *,
    index: str = "Flat",
    cluster: bool = False,
    reorder: Callable[[RetrievalTask], Reorder] | None = None,
    max_memory: int = 1 << 30,
    progress: bool = False,
) -> RetrievalResult:
    """Returns the scores of a task; the arguments are those of ``evaluate_embeddings``.

    Args:
        reorder: Called with the task of the queries that count, it returns a function that reorders neighbors, such as
            ``k_reciprocal``.
    """
    ks = _checked(ks)
    whole, task = task, task.subset(task.answerable)
    if not len(task.queries):
        raise InputError(
            f"none of the {len(whole.queries)} queries has another image of its label among "
            f"{len(task.gallery)} gallery images: give at least two images of one class"
        )
    gallery = task.search_gallery(max_memory, index)
    depths = np.maximum(task.relevant, max(ks))
    labels = task.query_labels, task.gallery_labels
    rearrange = None if reorder is None else reorder(task)
    per_query: dict[str, metrics.Floats] = {}
    with tqdm(total=len(depths), desc="search", unit="query", disable=None if progress else True) as bar:
        for rows, positions in k_nearest(
            gallery,
            task.queries,
            depths,
            excluded=task.excluded,
            labels=labels if rearrange is None else None,
            max_memory=max_memory,
        ):
            if rearrange is not None:
                positions = rearrange(rows, positions)
            hits = (labels[1][positions] == labels[0][rows, None]) & (positions >= 0)
            for key, values in _scores(hits, task.relevant[rows], ks).items():
                per_query.setdefault(key, np.empty(len(depths)))[rows] = values
            bar.update(len(rows))
    return RetrievalResult(
        ks=ks,
        per_query=per_query,
        query_ids=task.query_ids,
        query_labels=task.query_labels,
        num_gallery=len(task.gallery),
        num_skipped=len(whole.queries) - len(task.queries),
        index=index,
        index_overlap=None if gallery.exact else _overlap(task, gallery, max(ks), max_memory),
        clustering=clustering.scores(whole.queries, whole.query_labels) if cluster else {},
    )


def _checked(ks: Sequence[int]) -> tuple[int, ...]:
    for k in ks:
        if isinstance(k, bool) or int(k) != k or k < 1:
            raise InputError(f"ks: each K must be an integer of at least 1, found {k!r}")
    if not len(ks):
        raise InputError("ks: give at least one K")
    return tuple(sorted({int(k) for k in ks}))


def _scores(hits: metrics.Bools, relevant: Ints, ks: tuple[int, ...]) -> dict[str, metrics.Floats]:
    return {
        **{f"recall@{k}": metrics.recall_at_k(hits, k) for k in ks},
        **{f"precision@{k}": metrics.precision_at_k(hits, k) for k in ks},
        **{f"map@{k}": metrics.map_at_k(hits, k) for k in ks},
        "r_precision": metrics.r_precision(hits, relevant),
        "map@r": metrics.map_at_r(hits, relevant),
        f"mrr@{ks[-1]}": metrics.reciprocal_rank(hits, ks[-1]),
    }


def _overlap(task: RetrievalTask, gallery: Gallery, k: int, max_memory: int) -> float:
    """The mean share of the exact k nearest that an approximate index found, on a seeded sample of queries."""
    count = len(task.queries)
    task = task.subset(np.random.default_rng(0).choice(count, min(count, OVERLAP_QUERIES), replace=False))
    found = []
    for searched in (task.search_gallery(max_memory), gallery):
        nearest = np.empty((len(task.queries), k), dtype=np.int64)
        depths = np.full(len(nearest), k)
        for rows, positions in k_nearest(searched, task.queries, depths, excluded=task.excluded, max_memory=max_memory):
            nearest[rows] = positions
        found.append(nearest)
    exact, approximate = found
    shared = [
        len(np.intersect1d(a[a >= 0], b)) / max(1, len(a[a >= 0])) for a, b in zip(exact, approximate, strict=True)
    ]
    return float(np.mean(shared))
