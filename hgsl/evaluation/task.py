"""A retrieval task: which images are searched among which, checked once where it enters."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from hgsl.common.errors import InputError
from hgsl.evaluation import candidates
from hgsl.evaluation.search import Gallery, KeyPair, both_equal, count_equal
from hgsl.evaluation.vectors import Array, Ints, Vectors, integers, open_vectors


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
        excluded: Keys of queries and gallery; where they are equal in a pair, that image is no neighbour of that query.
        relevant: (Q,) how many gallery images have the query's label and are not excluded for it.
        metric: ``cosine``, ``inner_product`` or ``l2``.
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

    @property
    def answerable(self) -> Ints:
        """Rows of the queries that have a match in the gallery."""
        return np.flatnonzero(self.relevant > 0)

    def subset(self, rows: Ints) -> "RetrievalTask":
        """Returns the task of some of the queries."""
        return replace(
            self,
            queries=self.queries.pick(rows),
            query_labels=self.query_labels[rows],
            query_ids=self.query_ids[rows],
            excluded=tuple((query_keys[rows], gallery_keys) for query_keys, gallery_keys in self.excluded),
            relevant=self.relevant[rows],
        )

    def search_gallery(self, index: str, device: torch.device, max_memory: int) -> Gallery:
        """Returns the gallery ready to search: exactly on ``device`` if the index is ``Flat``, else by that index."""
        if index != "Flat":
            propose = candidates.approximate(self.gallery, self.metric, index)
        elif device.type == "cpu":
            propose = candidates.on_cpu(self.gallery, self.metric, max_memory)
        else:
            propose = candidates.on_device(self.gallery, self.metric, max_memory, device)
        return Gallery(self.gallery, self.gallery_ids, self.metric, propose, exact=index == "Flat")


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
) -> RetrievalTask:
    """Checks the arguments of ``evaluate_embeddings``, where they are described, and puts them in one form.

    Raises:
        InputError: Arguments contradict each other, or shapes, dtypes or values are wrong.
    """
    candidates.check_metric(metric)
    unit = metric == "cosine"
    vectors = open_vectors(embeddings, "embeddings", unit=unit)
    count = len(vectors)
    labels = integers(labels, "labels", count)
    rows = np.arange(count) if ids is None else integers(ids, "ids", count)
    group = None if groups is None else integers(groups, "groups", count)
    if gallery_embeddings is None:
        _refuse(
            "gallery_embeddings", gallery_labels=gallery_labels, gallery_ids=gallery_ids, gallery_groups=gallery_groups
        )
        asked, searched = _rows(is_query, "is_query", count), _rows(is_gallery, "is_gallery", count)
        queries = vectors if len(asked) == count else vectors.pick(asked)
        gallery = vectors if len(searched) == count else vectors.pick(searched)
        label_pair, id_pair = (labels[asked], labels[searched]), (rows[asked], rows[searched])
        group_pair = None if group is None else (group[asked], group[searched])
    else:
        if is_query is not None or is_gallery is not None:
            raise InputError("is_query and is_gallery choose rows of embeddings: leave them out, or gallery_embeddings")
        if gallery_labels is None:
            raise InputError("gallery_embeddings needs gallery_labels: give one label an image")
        if gallery_ids is not None and ids is None:
            raise InputError("gallery_ids needs ids: without the queries' ids nothing can be compared with them")
        if (groups is None) != (gallery_groups is None):
            raise InputError("groups and gallery_groups must be given together: a group is compared with the other's")
        queries, gallery = vectors, open_vectors(gallery_embeddings, "gallery_embeddings", unit=unit)
        size = len(gallery)
        if gallery.width != queries.width:
            raise InputError(
                f"gallery_embeddings have {gallery.width} dimensions and embeddings {queries.width}: "
                "both must come from one model"
            )
        # Without ids the two sets share no image: ids that no query has.
        other = rows.max() + 1 + np.arange(size) if gallery_ids is None else integers(gallery_ids, "gallery_ids", size)
        label_pair, id_pair = (labels, integers(gallery_labels, "gallery_labels", size)), (rows, other)
        group_pair = None if group is None else (group, integers(gallery_groups, "gallery_groups", size))  # type: ignore[arg-type]

    excluded = [id_pair]
    if group_pair is not None:
        excluded.append(both_equal(label_pair, _known_groups(group_pair)))
    return RetrievalTask(
        queries,
        *(label_pair[0], id_pair[0]),
        gallery,
        *(label_pair[1], id_pair[1]),
        tuple(excluded),
        _count_relevant(label_pair, excluded),
        metric,
    )


def _count_relevant(labels: KeyPair, excluded: Sequence[KeyPair]) -> Ints:
    """Matches of each query, less those excluded by any pair of keys (inclusion and exclusion over at most two)."""

    def count(*pairs: KeyPair) -> Ints:
        keys = pairs[0]
        for pair in pairs[1:]:
            keys = both_equal(keys, pair)
        return count_equal(keys[1], keys[0])

    left_out = sum(count(labels, pair) for pair in excluded)
    return count(labels) - left_out + (count(labels, *excluded) if len(excluded) == 2 else 0)


def _known_groups(groups: KeyPair) -> KeyPair:
    """Group -1 stands for none, and none equals nothing: the two sides get different keys for it."""
    return np.where(groups[0] < 0, -1, groups[0]), np.where(groups[1] < 0, -2, groups[1])


def _rows(mask: Array | None, name: str, count: int) -> Ints:
    """The rows that a mask chooses; all of them without one."""
    array = np.ones(count, dtype=bool) if mask is None else np.asarray(mask)
    if array.shape != (count,) or array.dtype != bool:
        raise InputError(f"{name}: expected {count} booleans, one an image, found {array.dtype} of shape {array.shape}")
    if not array.any():
        raise InputError(f"{name}: chooses none of the {count} images")
    return np.flatnonzero(array)


def _refuse(needed: str, **given: object) -> None:
    for name, value in given.items():
        if value is not None:
            raise InputError(f"{name} needs {needed}: give both or none")
