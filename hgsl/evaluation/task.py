"""A retrieval task: queries and gallery, checked once."""

from __future__ import annotations  # so that help() shows the names of long types

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from hgsl.common.device import check_device, cpu_has_amx
from hgsl.common.errors import InputError
from hgsl.common.eval_checks import check_metric
from hgsl.evaluation.knn import backends
from hgsl.evaluation.knn.exclusion import KeyPair, both_equal, count_all_equal, count_equal
from hgsl.evaluation.knn.order import Gallery
from hgsl.evaluation.knn.vectors import Array, Ints, Vectors, integers, open_vectors
from hgsl.evaluation.labels import as_array, encode_labels, signed


@dataclass(frozen=True)
class RetrievalTask:
    """Queries and a gallery.

    Attributes:
        queries: (Q, D) vectors.
        query_labels: (Q,) labels.
        query_ids: (Q,) ids.
        gallery: (N, D) vectors.
        gallery_labels: (N,) labels.
        gallery_ids: (N,) ids.
        excluded: Pairs of keys of queries and gallery; images with an equal key in any pair are not neighbors.
        relevant: (Q,) how many gallery images have the query's label and are not excluded for it.
        metric: ``cosine``, ``inner_product`` or ``l2``.
        device: Device of an exact search; each gives the same neighbors.
        class_names: Label -> name, where labels were given as text; else None.
    """

    queries: Vectors
    query_labels: Ints
    query_ids: Ints
    gallery: Vectors
    gallery_labels: Ints
    gallery_ids: Ints
    excluded: tuple[KeyPair, ...]
    relevant: Ints
    metric: str
    device: torch.device
    class_names: tuple[str, ...] | None = None

    @property
    def answerable(self) -> Ints:
        """Rows of the queries that have a match in the gallery."""
        return np.flatnonzero(self.relevant > 0)

    def subset(self, rows: Ints) -> RetrievalTask:
        """Returns the task of some of the queries."""
        return replace(
            self,
            queries=self.queries.pick(rows),
            query_labels=self.query_labels[rows],
            query_ids=self.query_ids[rows],
            excluded=tuple((query_keys[rows], gallery_keys) for query_keys, gallery_keys in self.excluded),
            relevant=self.relevant[rows],
        )

    def hits(self, rows: Ints, positions: Ints) -> NDArray[np.bool_]:
        """Returns (B, K): whether gallery row ``positions[i, j]`` has the label of query ``rows[i]``; -1 has not."""
        return (self.gallery_labels[positions] == self.query_labels[rows, None]) & (positions >= 0)

    def search_gallery(self, max_memory: int, index: str = "Flat") -> Gallery:
        """Returns the gallery ready to search: exactly on the task's device if the index is ``Flat``, else by it."""
        exact = index == "Flat"
        concurrency = backends.concurrency(self.device) if exact else 1
        if not exact:
            backend = backends.approximate(self.gallery, self.metric, index)
        elif self.device.type == "cpu" and not cpu_has_amx():
            backend = backends.on_cpu(self.gallery, self.metric, max_memory)
        else:
            backend = backends.on_device(self.gallery, self.metric, max_memory, self.device)
        return Gallery(self.gallery, self.gallery_ids, self.metric, backend, exact, concurrency)


def make_task(
    embeddings: Array,
    labels: Array,
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
    device: torch.device | str = "cpu",
) -> RetrievalTask:
    """Builds a checked task from the arguments of ``evaluate_embeddings``, which documents them.

    Raises:
        InputError: Arguments contradict each other, or shapes, dtypes or values are wrong.
    """
    check_metric(metric)
    unit = metric == "cosine"
    labels, gallery_labels, class_names = encode_labels(labels, gallery_labels)
    images = _Side.read("", embeddings, labels, ids, groups, unit)
    if gallery_embeddings is None:
        _refuse(
            "gallery_embeddings", gallery_labels=gallery_labels, gallery_ids=gallery_ids, gallery_groups=gallery_groups
        )
        queries, gallery = images.part(is_query, "is_query"), images.part(is_gallery, "is_gallery")
    else:
        if is_query is not None or is_gallery is not None:
            raise InputError("is_query and is_gallery choose rows of embeddings: leave them out, or gallery_embeddings")
        if gallery_labels is None:
            raise InputError("gallery_embeddings needs gallery_labels: give one label per image")
        if gallery_ids is not None and ids is None:
            raise InputError("gallery_ids needs ids: without the queries' ids nothing can be compared with them")
        if (groups is None) != (gallery_groups is None):
            raise InputError("groups and gallery_groups must be given together: a group is compared with the other's")
        queries = images
        gallery = _Side.read("gallery_", gallery_embeddings, gallery_labels, gallery_ids, gallery_groups, unit)
        if gallery.vectors.width != queries.vectors.width:
            raise InputError(
                f"gallery_embeddings have {gallery.vectors.width} dimensions and embeddings {queries.vectors.width}: "
                "both must come from one model"
            )
        if gallery_ids is None:  # the two sets share no image
            gallery = replace(gallery, ids=_other_ids(queries.ids, len(gallery.vectors)))

    label_pair, excluded = (queries.labels, gallery.labels), [(queries.ids, gallery.ids)]
    if queries.groups is not None and gallery.groups is not None:
        excluded.append(both_equal(label_pair, (queries.groups, gallery.groups)))
    return RetrievalTask(
        queries=queries.vectors,
        query_labels=queries.labels,
        query_ids=queries.ids,
        gallery=gallery.vectors,
        gallery_labels=gallery.labels,
        gallery_ids=gallery.ids,
        excluded=tuple(excluded),
        relevant=_count_relevant(label_pair, excluded),
        metric=metric,
        device=check_device(device),
        class_names=class_names,
    )


def _other_ids(ids: Ints, count: int) -> Ints:
    """``count`` ascending ids that differ from ``ids``: those after the largest, if they fit in 64 bits."""
    if int(ids.max()) <= np.iinfo(np.int64).max - count:
        return np.arange(count) + ids.max() + 1
    return np.setdiff1d(np.arange(count + len(ids)), ids)[:count]


@dataclass(frozen=True)
class _Side:
    """Queries or gallery."""

    vectors: Vectors
    labels: Ints
    ids: Ints
    groups: Ints | None

    @classmethod
    def read(
        cls, prefix: str, embeddings: Array, labels: Array, ids: Array | None, groups: Array | None, unit: bool
    ) -> _Side:
        """Checks the arguments whose names start with ``prefix``; ids are row numbers where there are none."""
        vectors = open_vectors(embeddings, f"{prefix}embeddings", unit=unit)
        count = len(vectors)
        return cls(
            vectors,
            integers(labels, f"{prefix}labels", count),
            np.arange(count) if ids is None else integers(ids, f"{prefix}ids", count),
            None if groups is None else integers(signed(groups), f"{prefix}groups", count),
        )

    def part(self, mask: Array | None, name: str) -> _Side:
        """The rows that a mask chooses; all of them without one."""
        if mask is None:
            return self
        array, count = as_array(mask), len(self.vectors)
        if array.shape != (count,) or array.dtype != bool:
            raise InputError(
                f"{name}: expected {count} booleans, one per image, found {array.dtype} of shape {array.shape}"
            )
        if not array.any():
            raise InputError(f"{name}: chooses none of the {count} images")
        if array.all():
            return self
        rows = np.flatnonzero(array)
        groups = None if self.groups is None else self.groups[rows]
        return _Side(self.vectors.pick(rows), self.labels[rows], self.ids[rows], groups)


def _count_relevant(labels: KeyPair, excluded: Sequence[KeyPair]) -> Ints:
    """Matches of each query, less those excluded by any pair of keys (inclusion and exclusion over at most two)."""
    num_excluded = sum(count_all_equal([labels, pair]) for pair in excluded)
    matches = count_equal(labels[1], labels[0])
    return matches - num_excluded + (count_all_equal([labels, *excluded]) if len(excluded) == 2 else 0)


def _refuse(needed: str, **given: object) -> None:
    for name, value in given.items():
        if value is not None:
            raise InputError(f"{name} needs {needed}: give both or none")
