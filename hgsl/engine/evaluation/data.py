"""The data of an evaluation: embeddings with labels, ids, groups and roles, and the entries of its report."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from PIL import Image

from hgsl.evaluation import RetrievalTask, make_task
from hgsl.evaluation.knn.vectors import Array


@dataclass(frozen=True)
class ImageSet:
    """Embeddings with one label, id, group and role per image; None where there is none."""

    embeddings: Array
    labels: Array
    ids: Array | None = None
    groups: Array | None = None
    is_query: Array | None = None
    is_gallery: Array | None = None


@dataclass(frozen=True)
class EvalData:
    """The inputs of an evaluation.

    Attributes:
        name: Row in tables.
        images: The queries, and the gallery unless there are ``galleries``.
        galleries: Name -> separate gallery.
        metadata: Entries of the report: data set, protocol, hash of the split, notes, ...
        steps: Descriptions of the steps after a plain forward pass.
        training: Returns training embeddings, on which whitening is fitted.
        validation: Returns validation images, on which a threshold is calibrated; labels have the encoding of
            those of ``images``.
        class_names: Label -> name.
        image_names: Id -> path.
        load_image: Id -> image.
        categories: Id -> name of its category, such as a coarser class or a camera.
        explain: Two ids -> both images with the parts that make their similarity.
        device: Device of an exact search.
    """

    name: str
    images: ImageSet
    galleries: Mapping[str, ImageSet] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    steps: Sequence[str] = ()
    training: Callable[[], Array] | None = None
    validation: Callable[[], ImageSet] | None = None
    class_names: Sequence[str] | None = None
    image_names: Mapping[int, str] | None = None
    load_image: Callable[[int], Image.Image] | None = None
    categories: Mapping[int, str] = field(default_factory=dict)
    explain: Callable[[int, int], tuple[Image.Image, Image.Image]] | None = None
    device: torch.device | str = "cpu"

    def tasks(self, metric: str) -> dict[str, RetrievalTask]:
        """The retrieval task of each gallery, by its row in a table."""
        if not self.galleries:
            return {self.name: make_task(**vars(self.images), metric=metric, device=self.device)}
        return {name: self._task(gallery, metric) for name, gallery in self.galleries.items()}

    def with_note(self, note: str | None) -> "EvalData":
        """The same data with a note for the report, if there is one."""
        if note is None:
            return self
        return replace(self, metadata={**self.metadata, "notes": [*self.metadata.get("notes", ()), note]})

    def with_embeddings(self, change: Callable[[Array], Array], step: str) -> "EvalData":
        """The same images after a change to every embedding."""

        def changed(images: ImageSet) -> ImageSet:
            return replace(images, embeddings=change(images.embeddings))

        validation = self.validation
        return replace(
            self,
            images=changed(self.images),
            galleries={name: changed(gallery) for name, gallery in self.galleries.items()},
            steps=[*self.steps, step],
            validation=None if validation is None else lambda: changed(validation()),
        )

    def _task(self, gallery: ImageSet, metric: str) -> RetrievalTask:
        return make_task(
            self.images.embeddings,
            self.images.labels,
            ids=self.images.ids if gallery.ids is not None else None,
            groups=self.images.groups,
            gallery_embeddings=gallery.embeddings,
            gallery_labels=gallery.labels,
            gallery_ids=gallery.ids,
            gallery_groups=gallery.groups,
            metric=metric,
            device=self.device,
        )
