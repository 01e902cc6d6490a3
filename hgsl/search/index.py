"""Search in an index by image files, PIL images or vectors, among all images or those of one label."""

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from hgsl.common.device import pick_device
from hgsl.common.errors import InputError
from hgsl.common.faiss_factory import FLAT
from hgsl.common.images import decode
from hgsl.common.paths import check_path
from hgsl.common.suggestions import nearest
from hgsl.evaluation.knn.backends import Backend
from hgsl.evaluation.knn.knn import k_nearest
from hgsl.evaluation.knn.order import Gallery, neighbor_scores
from hgsl.evaluation.knn.vectors import Floats, Ints, open_vectors
from hgsl.models import load_embedder
from hgsl.search.checks import check_neighbors
from hgsl.search.encoder import Encoder
from hgsl.search.storage import faiss_file
from hgsl.search.storage.layout import MODEL
from hgsl.search.storage.reader import Snapshot, open_snapshot

BATCH = 64  # queries per forward pass

QUERY_TYPES = "a path, a PIL image or vectors"
ImageQuery = str | Path | Image.Image
Queries = ImageQuery | Sequence[ImageQuery] | NDArray[Any] | torch.Tensor


class Hit(NamedTuple):
    """An image of the index: its number, its path in the image folder, its label, and its cosine similarity."""

    id: int
    path: str
    label: str | None
    similarity: float


class SearchIndex:
    """An index, opened with :meth:`open`; it keeps its snapshot while the folder is updated.

    >>> index = SearchIndex.open("my/index")                 # doctest: +SKIP
    >>> for hit in index.search("photo.jpg", k=5)[0]:        # doctest: +SKIP
    ...     print(f"{hit.similarity:.3f}  {hit.label}  {hit.path}")

    Attributes:
        folder: The index folder.
        root: The image folder.
        record: The contents of ``index.json``: model, preprocessing, threshold.
        labels: Label -> number of images.
        threshold: The similarity below which a search reports no match, or None.
    """

    def __init__(self, folder: Path, snapshot: Snapshot, backend: Backend, device: torch.device) -> None:
        self.folder = folder
        self.root = Path(snapshot.record["root"])
        self.record = snapshot.record
        self.labels = Counter(label for label in snapshot.table.labels if label is not None)
        no_match = snapshot.record.get("no_match")
        self.threshold: float | None = None if no_match is None else no_match["threshold"]
        self._table = snapshot.table
        self._device = device
        exact = snapshot.record["faiss"] == FLAT
        rows = np.arange(len(snapshot.vectors))
        self._gallery = Gallery(snapshot.vectors, rows, faiss_file.METRIC, backend, exact)

    @classmethod
    def open(cls, folder: str | Path, *, device: str = "auto") -> "SearchIndex":
        """Opens the index in ``folder``; the model is loaded by the first image query.

        Raises:
            FileNotFoundError: There is no index.
            InputError: One of its files is missing or damaged.
        """
        check_path("folder", folder, "the path of an index")
        folder = Path(folder).expanduser()
        return cls(folder, *open_snapshot(folder), pick_device(device))

    def __repr__(self) -> str:
        threshold = "none" if self.threshold is None else f"{self.threshold:.4f}"
        backbone = self.record["model"]["architecture"]["backbone"]
        return (
            f"SearchIndex({str(self.folder)!r}: {len(self):,} images, {len(self.labels):,} labels, {self.dimensions} "
            f"dimensions, {backbone}, {self.record['faiss']}, no-match threshold {threshold}, on {self._device})"
        )

    def __len__(self) -> int:
        return len(self._table.images)

    @property
    def dimensions(self) -> int:
        """D, the length of a vector."""
        return self._gallery.vectors.width

    @cached_property
    def encoder(self) -> Encoder:
        """The model that embedded the images.

        Raises:
            InputError: ``model/`` holds another model.
        """
        encoder = Encoder(load_embedder(self.folder / MODEL), self._device)
        expected = self.record["model"].get("fingerprint")
        if encoder.fingerprint != expected:
            raise InputError(
                f"{self.folder / MODEL} is not the model that embedded the images ({encoder.fingerprint}, not "
                f"{expected}): give that model to hgsl-search index with --checkpoint"
            )
        return encoder

    def search(self, images: Queries, k: int = 10, *, label: str | Sequence[str] | None = None) -> list[list[Hit]]:
        """Returns the k nearest images of each query, most similar first, equal similarities by ascending id.

        Args:
            images: One or several paths or PIL images (rotated according to their EXIF orientation); or vectors of the
                same model, (Q, D) or (D,), NumPy or torch.
            k: Number of images; fewer are returned if the index (or the label) has fewer.
            label: Only images of this label, or of one of these labels.

        Returns:
            One list per query.

        Raises:
            InputError: A query cannot be read or has another dimension, ``k`` is below 1, or no image has the label.
        """
        if isinstance(images, (np.ndarray, torch.Tensor)):
            return self.nearest(images[None] if images.ndim == 1 else images, k, label=label)
        if isinstance(images, (str, Path, Image.Image)):
            images = [images]
        if not isinstance(images, Iterable):
            raise InputError(f"images is {images!r:.80}: expected {QUERY_TYPES}, or a list of them")
        queries = list(images)
        return self.nearest(self.embed(queries), k, label=label) if queries else []

    def similar(self, image: int, k: int = 10, *, label: str | Sequence[str] | None = None) -> list[Hit]:
        """Returns the k nearest images of an image of the index, itself excluded."""
        return [hit for hit in self.nearest(self.vector(image)[None], k + 1, label=label)[0] if hit.id != image][:k]

    def embed(self, images: Sequence[ImageQuery]) -> Floats:
        """Returns the vectors of images, (Q, D) float32 of unit norm."""
        batches = [images[start : start + BATCH] for start in range(0, len(images), BATCH)]
        return np.concatenate([self.encoder.vectors([self._prepare(image) for image in batch]) for batch in batches])

    def nearest(
        self, vectors: NDArray[Any] | torch.Tensor, k: int, *, label: str | Sequence[str] | None = None
    ) -> list[list[Hit]]:
        """Returns the k nearest images of each vector, (Q, D); see :meth:`search`."""
        check_neighbors(k)
        queries = open_vectors(vectors, "queries")
        if queries.width != self.dimensions:
            raise InputError(
                f"the queries have {queries.width} dimensions, the index has {self.dimensions}: they are vectors of "
                "another model"
            )
        gallery = self._gallery if label is None else self._labeled_gallery(label)
        depths = np.full(len(queries), min(k, len(gallery.vectors)))
        results: list[list[Hit]] = [[] for _ in range(len(queries))]
        for rows, positions in k_nearest(gallery, queries, depths, max_memory=faiss_file.MAX_MEMORY):
            similarities = neighbor_scores(gallery.vectors, positions, queries, rows, gallery.metric)
            for row, neighbors, values in zip(rows, positions, similarities, strict=True):
                results[row] = self._hits(gallery.ids, neighbors, values)
        return results

    def accepts(self, hits: Sequence[Hit]) -> bool | None:
        """Whether the nearest image is similar enough to be a match; None if the index has no threshold."""
        if self.threshold is None:
            return None
        return bool(hits) and bool(hits[0].similarity >= np.float32(self.threshold))

    def image(self, number: int) -> Hit:
        """Returns an image of the index by its number, with similarity 1."""
        self._check_number(number)
        return Hit(number, self._table.images[number].path, self._table.labels[number], 1.0)

    def spread(self, count: int, label: str | Sequence[str] | None = None) -> list[int]:
        """Returns ``count`` image numbers, or all, spaced evenly over the index or over the images of labels."""
        numbers = np.arange(len(self)) if label is None else self._numbers_of(label)
        return numbers[np.unique(np.linspace(0, len(numbers) - 1, count).astype(int))].tolist()

    def find(self, path: str) -> int | None:
        """Returns the number of the image of a path in the image folder, or None."""
        return self._numbers.get(path)

    def vector(self, number: int) -> Floats:
        """Returns the vector (D,) of an image of the index."""
        self._check_number(number)
        return self._gallery.vectors.rows(np.array([number]))[0]

    def path(self, number: int) -> Path:
        """Returns the path of an image, as it was when it was indexed."""
        self._check_number(number)
        return self.root / self._table.images[number].path

    def _prepare(self, image: ImageQuery) -> torch.Tensor:
        if isinstance(image, Image.Image):
            return self.encoder.prepare(decode(image))
        check_path("images", image, QUERY_TYPES)
        return self.encoder.read(Path(image))

    def _check_number(self, number: int) -> None:
        if not 0 <= number < len(self):
            raise InputError(f"image {number} is not in the index, which has {len(self)}")

    @cached_property
    def _label_numbers(self) -> dict[str, Ints]:
        numbers: dict[str, list[int]] = {}
        for number, label in enumerate(self._table.labels):
            if label is not None:
                numbers.setdefault(label, []).append(number)
        return {label: np.array(rows) for label, rows in numbers.items()}

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {image.path: number for number, image in enumerate(self._table.images)}

    def _numbers_of(self, label: str | Sequence[str]) -> Ints:
        """The images of a label, or of several, in ascending order."""
        if not isinstance(label, str):
            return np.sort(np.concatenate([self._numbers_of(name) for name in dict.fromkeys(label)]))
        if label not in self._label_numbers:
            close = nearest(label, self.labels)
            hint = f"did you mean {close!r}?" if close else f"it has {len(self.labels)} labels"
            raise InputError(f"no image of the index has the label {label!r}: {hint}")
        return self._label_numbers[label]

    def _labeled_gallery(self, label: str | Sequence[str]) -> Gallery:
        """The images of labels as a gallery, always searched exactly."""
        numbers = self._numbers_of(label)
        vectors = self._gallery.vectors.pick(numbers)
        return Gallery(vectors, numbers, faiss_file.METRIC, faiss_file.flat(vectors))

    def _hits(self, numbers: Ints, positions: Ints, similarities: Floats) -> list[Hit]:
        """Hits at ``positions`` (K,) of a gallery whose rows have image ``numbers``; -1 marks a missing neighbor."""
        valid = positions >= 0
        return [
            Hit(number, self._table.images[number].path, self._table.labels[number], similarity)
            for number, similarity in zip(numbers[positions[valid]].tolist(), similarities[valid].tolist(), strict=True)
        ]
