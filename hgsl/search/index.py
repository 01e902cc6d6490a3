"""Search an index: by photos, pictures or vectors, all of them or those of one label."""

from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

from hgsl.common.device import pick_device
from hgsl.common.errors import InputError, nearest
from hgsl.data.files.images import to_rgb
from hgsl.evaluation.knn.backends import Backend
from hgsl.evaluation.knn.knn import k_nearest
from hgsl.evaluation.knn.order import Gallery, neighbor_scores
from hgsl.evaluation.knn.vectors import Floats, Ints, open_vectors
from hgsl.models import load_embedder
from hgsl.search import neighbors as neighbors
from hgsl.search import store
from hgsl.search.encoder import Encoder

BATCH = 64  # queries a forward pass

Query = str | Path | Image.Image
Queries = Query | Sequence[Query] | NDArray[Any] | torch.Tensor


class Hit(NamedTuple):
    """A photo that was found: its number in the index, its path in the folder, its label, its cosine similarity."""

    id: int
    path: str
    label: str | None
    similarity: float


class SearchIndex:
    """An index, opened with :meth:`open`; while its folder is brought up to date, it stays at the state that it found.

    >>> index = SearchIndex.open("my/index")                 # doctest: +SKIP
    >>> for hit in index.search("photo.jpg", k=5)[0]:        # doctest: +SKIP
    ...     print(f"{hit.similarity:.3f}  {hit.label}  {hit.path}")

    Attributes:
        folder: Of the index.
        root: Of the photos.
        record: What ``index.json`` says: model, preprocessing, threshold.
        labels: Label -> how many photos it has.
        threshold: The similarity below which nothing counts as found, or None.
    """

    def __init__(self, folder: Path, state: store.State, backend: Backend, device: torch.device) -> None:
        self.folder = folder
        self.root = Path(state.record["root"])
        self.record = state.record
        self.labels = Counter(label for label in state.table.labels if label is not None)
        no_match = state.record.get("no_match")
        self.threshold: float | None = None if no_match is None else no_match["threshold"]
        self._table = state.table
        self._device = device
        exact = state.record["faiss"] == neighbors.FLAT
        self._gallery = Gallery(state.vectors, np.arange(len(state.vectors)), "cosine", backend, exact)

    @classmethod
    def open(cls, folder: str | Path, *, device: str = "auto") -> "SearchIndex":
        """Opens the index in ``folder``; the model is loaded when the first photo is asked for.

        Raises:
            FileNotFoundError: There is none.
            InputError: A file of it is missing or damaged.
        """
        folder = Path(folder).expanduser()
        return cls(folder, *store.read_to_search(folder), pick_device(device))

    def __len__(self) -> int:
        return len(self._table.photos)

    @property
    def dimensions(self) -> int:
        """D, the length of a vector."""
        return self._gallery.vectors.width

    @cached_property
    def encoder(self) -> Encoder:
        """The model that the photos were embedded with.

        Raises:
            InputError: ``model/`` holds another one.
        """
        encoder = Encoder(load_embedder(self.folder / store.MODEL), self._device)
        recorded = self.record["model"].get("fingerprint")
        if encoder.fingerprint != recorded:
            raise InputError(
                f"{self.folder / store.MODEL} is another model ({encoder.fingerprint}) than the one that embedded the "
                f"photos ({recorded}): put that one back, or make the index anew"
            )
        return encoder

    def search(self, images: Queries, k: int = 10, *, label: str | None = None) -> list[list[Hit]]:
        """Finds the nearest photos of each query, the nearest first; equally near ones in the order of their ids.

        Args:
            images: Paths, PIL images (turned upright by their EXIF orientation), one of these or several; or vectors
                of the same model, (Q, D) or (D,), NumPy or torch.
            k: How many; fewer come back if the index (or the label) has fewer.
            label: Only photos of this label.

        Returns:
            One list a query.

        Raises:
            InputError: A query cannot be read or is of another model, ``k`` is below 1, or no photo has the label.
        """
        if isinstance(images, (np.ndarray, torch.Tensor)):
            return self.nearest(images[None] if images.ndim == 1 else images, k, label=label)
        queries = [images] if isinstance(images, (str, Path, Image.Image)) else list(images)
        return self.nearest(self.embed(queries), k, label=label) if queries else []

    def similar(self, photo: int, k: int = 10, *, label: str | None = None) -> list[Hit]:
        """Finds the photos nearest to a photo of the index, itself left out."""
        return [hit for hit in self.nearest(self.vector(photo)[None], k + 1, label=label)[0] if hit.id != photo][:k]

    def embed(self, images: Sequence[Query]) -> Floats:
        """The vectors of photos, (Q, D) float32 of unit norm."""
        parts = []
        for start in range(0, len(images), BATCH):
            tensors = [
                self.encoder.prepare(to_rgb(ImageOps.exif_transpose(image)))
                if isinstance(image, Image.Image)
                else self.encoder.read(Path(image))
                for image in images[start : start + BATCH]
            ]
            parts.append(self.encoder.vectors(tensors))
        return np.concatenate(parts)

    def nearest(self, vectors: NDArray[Any] | torch.Tensor, k: int, *, label: str | None = None) -> list[list[Hit]]:
        """The same as :meth:`search` for vectors (Q, D)."""
        if k < 1:
            raise InputError(f"k must be at least 1, found {k}")
        queries = open_vectors(vectors, "queries")
        if queries.width != self.dimensions:
            raise InputError(
                f"the queries are vectors of {queries.width} numbers, the index has {self.dimensions}: another model's"
            )
        gallery, places = self._gallery, None
        if label is not None:
            places = self._places(label)
            part = gallery.vectors.pick(places)
            gallery = Gallery(part, places, gallery.metric, neighbors.flat(part))
        depths = np.full(len(queries), min(k, len(gallery.vectors)))
        found: list[list[Hit]] = [[] for _ in range(len(queries))]
        for rows, positions in k_nearest(gallery, queries, depths, max_memory=neighbors.MAX_MEMORY):
            scores = neighbor_scores(gallery.vectors, positions, queries, rows, gallery.metric)
            for row, line, values in zip(rows, positions, scores, strict=True):
                found[row] = self._hits(line, values, places)
        return found

    def accepts(self, hits: Sequence[Hit]) -> bool | None:
        """Whether the nearest is near enough to be believed; None if the index has no threshold."""
        if self.threshold is None:
            return None
        return bool(hits) and bool(hits[0].similarity >= np.float32(self.threshold))

    def photo(self, photo: int) -> Hit:
        """A photo of the index by its number, as if it had found itself."""
        place = self._checked(photo)
        return Hit(place, self._table.photos[place].path, self._table.labels[place], 1.0)

    def spread(self, count: int, label: str | None = None) -> list[int]:
        """So many photos, or all if there are fewer, spread evenly over the index or over those of a label."""
        places = np.arange(len(self)) if label is None else self._places(label)
        return places[np.unique(np.linspace(0, len(places) - 1, count).astype(int))].tolist()

    def vector(self, photo: int) -> Floats:
        """The vector (D,) of a photo of the index."""
        return self._gallery.vectors.rows(np.array([self._checked(photo)]))[0]

    def path(self, photo: int) -> Path:
        """Where a photo lies, or lay when the index was made."""
        return self.root / self._table.photos[self._checked(photo)].path

    def _checked(self, photo: int) -> int:
        if not 0 <= photo < len(self):
            raise InputError(f"photo {photo} is not in the index, which has {len(self)}")
        return photo

    @cached_property
    def _places_of(self) -> dict[str, Ints]:
        places: dict[str, list[int]] = {}
        for place, label in enumerate(self._table.labels):
            if label is not None:
                places.setdefault(label, []).append(place)
        return {label: np.array(rows) for label, rows in places.items()}

    def _places(self, label: str) -> Ints:
        if label not in self._places_of:
            close = nearest(label, self.labels)
            hint = f"did you mean {close!r}?" if close else f"it has {len(self.labels)} labels"
            raise InputError(f"no photo of the index is labeled {label!r}: {hint}")
        return self._places_of[label]

    def _hits(self, positions: Ints, scores: Floats, places: Ints | None) -> list[Hit]:
        ids = positions if places is None else places[positions]
        return [
            Hit(int(place), self._table.photos[place].path, self._table.labels[place], float(score))
            for place, position, score in zip(ids, positions, scores, strict=True)
            if position >= 0
        ]
