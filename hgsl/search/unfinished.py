"""Vectors that are computed and not yet part of a state: a killed run goes on from here.

Every few seconds a part is written, ``NUMBER.npy`` (photos, D) and then ``NUMBER.json``, which says of which photos, by
which model, and which photos were broken. A part without its JSON does not count.
"""

import shutil
import time
from pathlib import Path

import numpy as np

from hgsl.common.errors import InputError
from hgsl.common.files import atomic_path, read_json, write_json
from hgsl.evaluation.knn.vectors import Floats
from hgsl.search.photos import Photo

SECONDS = 5.0  # of work that a crash may cost

Source = tuple[Floats, int]  # a matrix, and the row of it


class Unfinished:
    """The folder of parts.

    Args:
        folder: Made with the first part.
        fingerprint: Of the model; parts of another one are not read.

    Attributes:
        vectors: Photo -> where its vector is, of all whole parts.
        broken: Photo -> why it could not be read.
    """

    def __init__(self, folder: Path, fingerprint: str) -> None:
        self.folder = folder
        self.fingerprint = fingerprint
        self.vectors: dict[Photo, Source] = {}
        self.broken: dict[Photo, str] = {}
        self._photos: list[Photo] = []
        self._rows: list[Floats] = []
        self._broken: dict[Photo, str] = {}
        self._written = time.monotonic()
        self._number = 0
        for path in sorted(folder.glob("[0-9]*.json")):
            self._read(path)

    def add(self, photos: list[Photo], vectors: Floats, broken: dict[Photo, str]) -> None:
        """Takes the results of a batch; a part is written if enough has come together."""
        self._photos += photos
        self._rows += [vectors] if photos else []
        self._broken |= broken
        if time.monotonic() - self._written > SECONDS:
            self.flush()

    def flush(self) -> None:
        """Writes what has come since the last part."""
        self._written = time.monotonic()
        if not self._photos and not self._broken:
            return
        path = self.folder / f"{self._number + 1:06}.json"
        if self._photos:
            with atomic_path(path.with_suffix(".npy")) as temporary:
                np.save(temporary, np.concatenate(self._rows))
        what = {
            "model": self.fingerprint,
            "photos": self._photos,
            "broken": [[*photo, reason] for photo, reason in self._broken.items()],
        }
        write_json(path, what)
        self._photos, self._rows, self._broken = [], [], {}
        self._read(path)

    def remove(self) -> None:
        """Forgets all: it is part of a state now."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _read(self, path: Path) -> None:
        """Takes a part in; one of another model, or a damaged one, is as if it were not there."""
        self._number = max(self._number, int(path.stem))
        try:
            part = read_json(path)
            if part["model"] != self.fingerprint:
                return
            photos = [Photo(*photo) for photo in part["photos"]]
            broken = {Photo(*photo): str(reason) for *photo, reason in part["broken"]}
            rows: Floats = np.empty((0, 0), np.float32)
            if photos:
                rows = np.load(path.with_suffix(".npy"), mmap_mode="r", allow_pickle=False)
            vectors: dict[Photo, Source] = {photo: (rows, row) for row, photo in enumerate(photos)}
            if len(vectors) != len(rows):
                return
        except (InputError, OSError, EOFError, KeyError, TypeError, ValueError):
            return
        self.vectors |= vectors
        self.broken |= broken
