"""Search in an index by image files, PIL images or vectors, among all images or those that satisfy a condition."""

from collections.abc import Iterable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from hgsl.common.device import pick_device
from hgsl.common.errors import InputError
from hgsl.common.images import decode
from hgsl.common.locations import local_or_uri, locate
from hgsl.common.paths import check_path
from hgsl.common.suggestions import nearest
from hgsl.evaluation.knn.vectors import Floats, open_vectors
from hgsl.models import load_embedder
from hgsl.search.checks import check_neighbors
from hgsl.search.encoder import Encoder
from hgsl.search.indexing.model import model_source
from hgsl.search.stores.address import open_store
from hgsl.search.stores.protocol import Hit, Snapshot, Store
from hgsl.search.where.nodes import Comparison, Condition, fields_of, with_labels
from hgsl.search.where.parser import parse

__all__ = ["Hit", "SearchIndex"]

BATCH = 64  # queries per forward pass
QUERY_TYPES = "a path, a PIL image or vectors"
ImageQuery = str | Path | Image.Image
Queries = ImageQuery | Sequence[ImageQuery] | NDArray[Any] | torch.Tensor


class SearchIndex:
    """An index, opened with :meth:`open`; it keeps its state while the index is updated.

    A pickled one is opened again, in its current state: processes can be given an index.

    >>> index = SearchIndex.open("my/index")                 # doctest: +SKIP
    >>> for hit in index.search("photo.jpg", k=5)[0]:        # doctest: +SKIP
    ...     print(f"{hit.similarity:.3f}  {hit.label}  {hit.path}")

    Attributes:
        store: Where the index is.
        root: The image folder, or its address.
        record: The settings of the index: model, preprocessing, threshold.
        labels: Label -> number of images.
        threshold: The similarity below which a search reports no match, or None.
        model: The folder of a trained model or its name on the Hub; None for the model that the index names.
    """

    def __init__(self, store: Store, snapshot: Snapshot, device: torch.device, model: str | Path | None = None) -> None:
        self.store = store
        self.root = local_or_uri(snapshot.record["root"])
        self.record = snapshot.record
        self.labels = snapshot.labels
        no_match = snapshot.record.get("no_match")
        self.threshold: float | None = None if no_match is None else no_match["threshold"]
        self.model = model
        self._snapshot = snapshot
        self._device = device

    @classmethod
    def open(cls, folder: str | Path, *, device: str = "auto", model: str | Path | None = None) -> "SearchIndex":
        """Opens the index in ``folder``; the model is loaded by the first image query.

        Args:
            folder: The index.
            device: Device of the model.
            model: The model of the index, if it is elsewhere than the index names.

        Raises:
            FileNotFoundError: There is no index.
            InputError: One of its files is missing or damaged.
        """
        check_path("folder", folder, "the path of an index")
        store = open_store(folder)
        return cls(store, store.open(), pick_device(device), model)

    def reopened(self) -> "SearchIndex":
        """Opens the current state of the same index, with the model of this one if that is loaded and the same.

        Raises:
            FileNotFoundError: The index no longer exists.
            InputError: It is damaged.
        """
        index = SearchIndex(self.store, self.store.open(), self._device, self.model)
        same = index.record["model"].get("fingerprint") == self.record["model"].get("fingerprint")
        if same and "encoder" in self.__dict__:
            index.__dict__["encoder"] = self.encoder
        return index

    def __repr__(self) -> str:
        threshold = "none" if self.threshold is None else f"{self.threshold:.4f}"
        backbone = self.record["model"]["architecture"]["backbone"]
        return (
            f"SearchIndex({self.store.address!r}: {len(self):,} images, {len(self.labels):,} labels, {self.dimensions} "
            f"dimensions, {backbone}, {self.record['index_type']}, no-match threshold {threshold}, on {self._device})"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles the address: the copy, such as that of another process, opens the current state."""
        return partial(type(self).open, device=str(self._device), model=self.model), (self.store.address,)

    def __len__(self) -> int:
        return len(self._snapshot)

    def __contains__(self, number: object) -> bool:
        return isinstance(number, int | np.integer) and bool(self._snapshot.images([int(number)]))

    @property
    def dimensions(self) -> int:
        """D, the length of a vector."""
        return int(self.record["dimensions"])

    @cached_property
    def encoder(self) -> Encoder:
        """The model that embedded the images.

        Raises:
            InputError: Another model was found.
        """
        source = self.model or model_source(self.store, self.record)
        encoder = Encoder(load_embedder(source), self._device)
        expected = self.record["model"].get("fingerprint")
        if encoder.fingerprint != expected:
            raise InputError(
                f"{source} is not the model that embedded the images ({encoder.fingerprint}, not {expected}): give "
                "that model to hgsl-search index with --checkpoint"
            )
        return encoder

    def condition(self, where: str | None = None, label: str | Sequence[str] | None = None) -> Condition | None:
        """The condition for a search among the images of a label, or of one of several, that also satisfy ``where``.

        Args:
            where: Such as ``label in ["rose", "tulip"] and year >= 2020``, over path, label, size (bytes), time
                (seconds since 1970) and the columns of the table of labels.
            label: A label of the index, or several.

        Raises:
            InputError: The condition is malformed, or no image has the label.
        """
        labels = (label,) if isinstance(label, str) else label
        if labels is not None and not isinstance(labels, Iterable):
            raise InputError(f"label is {label!r:.80}: expected a label, or several")
        if where is not None and not isinstance(where, str):
            raise InputError(f"where is {where!r:.80}: expected a condition such as 'year >= 2020'")
        labels = None if labels is None else tuple(labels)
        if labels == ():
            raise InputError("label is an empty list: give a label, or None to search the images of all")
        for name in labels or ():
            if name not in self.labels:
                close = nearest(name, self.labels)
                hint = f"did you mean {close!r}?" if close else f"it has {len(self.labels)} labels"
                raise InputError(f"no image of the index has the label {name!r}: {hint}")
        return with_labels(labels, None if where is None else parse(where, fields_of(self.record["columns"])))

    def search(
        self, images: Queries, k: int = 10, *, label: str | Sequence[str] | None = None, where: str | None = None
    ) -> list[list[Hit]]:
        """Returns the k nearest images of each query, most similar first, equal similarities by their paths.

        Args:
            images: One or several paths or PIL images (rotated according to their EXIF orientation); or vectors of the
                same model, (Q, D) or (D,), NumPy or torch.
            k: Number of images; fewer are returned if the index (or the condition) has fewer.
            label: Only images of this label, or of one of these labels.
            where: Only images that satisfy this condition; see :meth:`condition`.

        Returns:
            One list per query.

        Raises:
            InputError: A query cannot be read or has another dimension, ``k`` is below 1, the condition is malformed,
                or no image has the label.
        """
        condition = self.condition(where, label)
        if isinstance(images, (np.ndarray, torch.Tensor)):
            vectors = images[None] if images.ndim == 1 else images
            return self.nearest(vectors, k, condition) if len(vectors) else []
        if isinstance(images, (str, Path, Image.Image)):
            images = [images]
        if not isinstance(images, Iterable):
            raise InputError(f"images is {images!r:.80}: expected {QUERY_TYPES}, or a list of them")
        queries = list(images)
        return self.nearest(self.embed(queries), k, condition) if queries else []

    def similar(
        self, image: int, k: int = 10, *, label: str | Sequence[str] | None = None, where: str | None = None
    ) -> list[Hit]:
        """Returns the k nearest images of an image of the index, itself excluded; see :meth:`search`."""
        check_neighbors(k)
        [hits] = self.nearest(self.vector(image)[None], k + 1, self.condition(where, label))
        return [hit for hit in hits if hit.id != image][:k]

    def embed(self, images: Sequence[ImageQuery]) -> Floats:
        """Returns the vectors of images, (Q, D) float32 of unit norm."""
        batches = [images[start : start + BATCH] for start in range(0, len(images), BATCH)]
        if not batches:
            return np.empty((0, self.dimensions), np.float32)
        return np.concatenate([self.encoder.vectors([self._prepare(image) for image in batch]) for batch in batches])

    def nearest(
        self, vectors: NDArray[Any] | torch.Tensor, k: int, condition: Condition | None = None
    ) -> list[list[Hit]]:
        """Returns the k nearest images of each vector, (Q, D), that satisfy a condition; see :meth:`search`."""
        check_neighbors(k)
        queries = open_vectors(vectors, "queries")
        if queries.width != self.dimensions:
            raise InputError(
                f"the queries have {queries.width} dimensions, the index has {self.dimensions}: they are vectors of "
                "another model"
            )
        results = self._snapshot.search(queries, k, condition)
        return [[hit if hit.similarity <= 1 else hit._replace(similarity=1.0) for hit in hits] for hits in results]

    def count(self, condition: Condition | None = None) -> int:
        """Returns the number of images that satisfy a condition."""
        return self._snapshot.count(condition)

    def accepts(self, hits: Sequence[Hit]) -> bool | None:
        """Whether the nearest image is similar enough to be a match; None if the index has no threshold."""
        if self.threshold is None:
            return None
        return bool(hits) and bool(hits[0].similarity >= np.float32(self.threshold))

    def image(self, number: int) -> Hit:
        """Returns an image of the index by its number, with similarity 1.

        Raises:
            InputError: It is not in the index.
        """
        images = self._snapshot.images([number])
        if not images:
            raise InputError(f"image {number} is not in the index, which has {len(self):,} images")
        return images[0]

    def images(self, numbers: Sequence[int]) -> list[Hit]:
        """Returns images of the index by their numbers, with similarity 1; unknown numbers are left out."""
        return self._snapshot.images(numbers)

    def spread(self, count: int, condition: Condition | None = None) -> list[int]:
        """Returns ``count`` numbers of images, or all, spaced over those of the index that satisfy a condition."""
        return self._snapshot.spread(count, condition)

    def find(self, path: str) -> int | None:
        """Returns the number of the image of a path in the image folder, or None."""
        return next(iter(self.spread(1, Comparison("path", "==", (path,)))), None)

    def vector(self, number: int) -> Floats:
        """Returns the vector (D,) of an image of the index."""
        self.image(number)
        return self._snapshot.vectors([number])[0]

    def path(self, number: int) -> Path | str:
        """Returns the path or the address of an image, as it was when it was indexed."""
        return locate(self.root, self.image(number).path)

    def _prepare(self, image: ImageQuery) -> torch.Tensor:
        if isinstance(image, Image.Image):
            return self.encoder.prepare(decode(image))
        check_path("images", image, QUERY_TYPES)
        return self.encoder.read(local_or_uri(str(image)))
