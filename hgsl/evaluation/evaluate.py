"""From embeddings and labels to the numbers of a report."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from hgsl.common.errors import InputError
from hgsl.evaluation import metrics
from hgsl.evaluation.search import nearest_blocks

Array = ArrayLike | torch.Tensor


@dataclass(frozen=True)
class RetrievalResult:
    """Mean scores over the queries, each in [0, 1].

    Attributes:
        recall: K -> Recall@K.
        precision: K -> Precision@K.
        r_precision: R-Precision.
        map_at_r: MAP@R.
        num_queries: Queries that count: those with at least one match in the gallery.
        num_gallery: Images searched.
        num_skipped: Queries left out since the gallery holds no other image of their label.
        per_query: Metric key -> (num_queries,) float64, the values that the means are taken of.
        query_ids: (num_queries,) ids of the queries that count.
        query_labels: (num_queries,) labels of the queries that count.
    """

    recall: dict[int, float]
    precision: dict[int, float]
    r_precision: float
    map_at_r: float
    num_queries: int
    num_gallery: int
    num_skipped: int
    per_query: dict[str, NDArray[np.float64]]
    query_ids: NDArray[np.int64]
    query_labels: NDArray[np.int64]

    def to_dict(self) -> dict[str, Any]:
        """Returns the scores and counts under the keys of a JSON report, such as ``recall@1`` and ``map@r``."""
        return {
            **{f"recall@{k}": value for k, value in self.recall.items()},
            **{f"precision@{k}": value for k, value in self.precision.items()},
            "r_precision": self.r_precision,
            "map@r": self.map_at_r,
            "num_queries": self.num_queries,
            "num_gallery": self.num_gallery,
            "num_skipped": self.num_skipped,
        }


def evaluate_embeddings(
    embeddings: Array,
    labels: Array,
    ks: Sequence[int] = (1, 2, 4, 8),
    *,
    ids: Array | None = None,
    gallery_embeddings: Array | None = None,
    gallery_labels: Array | None = None,
    gallery_ids: Array | None = None,
    max_memory: int = 1 << 30,
) -> RetrievalResult:
    """Searches every query's nearest images in the gallery and returns the retrieval scores.

    Without a gallery, each image is searched among all the others. A gallery image with the query's id is never a
    neighbour of that query, so a query cannot find itself; a duplicate image under another id can be found.
    The vectors are compared by cosine similarity.

    Args:
        embeddings: (Q, D) query vectors, any float dtype, NumPy or torch.
        labels: (Q,) integer labels.
        ks: The K of Recall@K and Precision@K, each at least 1.
        ids: (Q,) integers that name the images; row numbers by default.
        gallery_embeddings: (N, D); with it come ``gallery_labels`` and, where the gallery may hold the queries
            themselves, ``gallery_ids``.
        max_memory: Bytes that the search may use beyond the embeddings.

    Raises:
        InputError: Shapes disagree, a vector is not finite or is zero, or no query has a match in the gallery.
    """
    for k in ks:
        if isinstance(k, bool) or int(k) != k or k < 1:
            raise InputError(f"ks: each K must be an integer of at least 1, found {k!r}")
    if not ks:
        raise InputError("ks: give at least one K")
    queries, labels = _unit_rows(embeddings, "embeddings"), _integers(labels, "labels")
    _same_length("labels", labels, "embeddings", queries)
    query_ids = np.arange(len(queries)) if ids is None else _integers(ids, "ids")
    _same_length("ids", query_ids, "embeddings", queries)
    if gallery_embeddings is None:
        if gallery_labels is not None or gallery_ids is not None:
            raise InputError("gallery_labels and gallery_ids need gallery_embeddings: give all three or none")
        gallery, gallery_labels, gallery_ids = queries, labels, query_ids
    else:
        if gallery_labels is None:
            raise InputError("gallery_embeddings needs gallery_labels: give one label an image")
        if gallery_ids is not None and ids is None:
            raise InputError("gallery_ids needs ids: without the queries' ids nothing can be compared with them")
        gallery, gallery_labels = (
            _unit_rows(gallery_embeddings, "gallery_embeddings"),
            _integers(gallery_labels, "labels"),
        )
        _same_length("gallery_labels", gallery_labels, "gallery_embeddings", gallery)
        if gallery_ids is None:  # no image in common: ids that no query has
            gallery_ids = np.arange(len(gallery)) + (query_ids.max(initial=-1) + 1)
        gallery_ids = _integers(gallery_ids, "gallery_ids")
        _same_length("gallery_ids", gallery_ids, "gallery_embeddings", gallery)
        if gallery.shape[1] != queries.shape[1]:
            raise InputError(
                f"gallery_embeddings have {gallery.shape[1]} dimensions and embeddings {queries.shape[1]}: "
                "both must come from one model"
            )

    relevant = _relevant(labels, query_ids, gallery_labels, gallery_ids)
    answerable = np.flatnonzero(relevant > 0)
    if not len(answerable):
        raise InputError(
            f"none of the {len(queries)} queries has another image of its label among {len(gallery)} gallery images: "
            "give at least two images of one class"
        )
    queries, labels, query_ids = queries[answerable], labels[answerable], query_ids[answerable]
    relevant = relevant[answerable]
    per_query: dict[str, list[NDArray[np.float64]]] = {}
    depth = int(max(*ks, relevant.max()))
    for rows, _, positions in nearest_blocks(
        queries, gallery, depth, query_ids=query_ids, gallery_ids=gallery_ids, max_memory=max_memory
    ):
        hits = (gallery_labels[positions] == labels[rows, None]) & (positions >= 0)
        for key, values in _scores(hits, relevant[rows], ks).items():
            per_query.setdefault(key, []).append(values)
    scores = {key: np.concatenate(parts) for key, parts in per_query.items()}
    return RetrievalResult(
        recall={k: float(scores[f"recall@{k}"].mean()) for k in ks},
        precision={k: float(scores[f"precision@{k}"].mean()) for k in ks},
        r_precision=float(scores["r_precision"].mean()),
        map_at_r=float(scores["map@r"].mean()),
        num_queries=len(queries),
        num_gallery=len(gallery),
        num_skipped=len(_array(embeddings)) - len(queries),
        per_query=scores,
        query_ids=query_ids,
        query_labels=labels,
    )


def _scores(hits: metrics.Bools, relevant: metrics.Ints, ks: Sequence[int]) -> dict[str, metrics.Floats]:
    return {
        **{f"recall@{k}": metrics.recall_at_k(hits, k) for k in ks},
        **{f"precision@{k}": metrics.precision_at_k(hits, k) for k in ks},
        "r_precision": metrics.r_precision(hits, relevant),
        "map@r": metrics.map_at_r(hits, relevant),
    }


def _relevant(
    labels: metrics.Ints, ids: metrics.Ints, gallery_labels: metrics.Ints, gallery_ids: metrics.Ints
) -> metrics.Ints:
    """How many gallery images share each query's label, those with its id left out."""

    def count(keys: NDArray[Any], wanted: NDArray[Any]) -> metrics.Ints:
        known, counts = np.unique(keys, return_counts=True, axis=0)
        table = {tuple(np.atleast_1d(key)): n for key, n in zip(known.tolist(), counts.tolist(), strict=True)}
        return np.array([table.get(tuple(np.atleast_1d(key)), 0) for key in wanted.tolist()], dtype=np.int64)

    own = count(np.stack([gallery_labels, gallery_ids], 1), np.stack([labels, ids], 1))
    return count(gallery_labels, labels) - own


def _array(values: Array) -> NDArray[Any]:
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        return (values.float() if values.is_floating_point() else values).numpy()
    return np.asarray(values)


def _unit_rows(values: Array, name: str) -> NDArray[np.float32]:
    array = _array(values)
    if array.ndim != 2 or not array.size or array.dtype.kind != "f":
        raise InputError(f"{name}: expected a matrix (images, dimensions) of floats, found {array.dtype} {array.shape}")
    array = np.ascontiguousarray(array, dtype=np.float32)
    norms = np.linalg.norm(array, axis=1)
    wrong = np.flatnonzero(~np.isfinite(norms) | (norms == 0))
    if len(wrong):
        raise InputError(f"{name}: row {wrong[0]} is zero or not finite ({len(wrong)} such rows): it has no direction")
    if np.abs(norms - 1).max() > 1e-5:
        array = array / norms[:, None]
    return array


def _integers(values: Array, name: str) -> metrics.Ints:
    array = _array(values)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise InputError(f"{name}: expected one integer an image, found {array.dtype} of shape {array.shape}")
    return array.astype(np.int64)


def _same_length(name: str, values: NDArray[Any], other: str, rows: NDArray[Any]) -> None:
    if len(values) != len(rows):
        raise InputError(f"{name} has {len(values)} entries and {other} {len(rows)} rows: both must be one an image")
