"""Embeddings that are computed but not yet part of a snapshot, so that an interrupted run can resume.

Every few seconds a part is written: ``NUMBER.npy`` (images, D), then ``NUMBER.json`` with the images and the model. A
part without its JSON file is ignored. Images that could not be read are not recorded: the next run tries them
again, since the cause may be temporary (a network share, a permission, a missing decoder).
"""

import shutil
import time
from pathlib import Path

import numpy as np

from hgsl.common.errors import InputError
from hgsl.common.files import atomic_path, read_json, write_json
from hgsl.common.fingerprint import word_sum
from hgsl.evaluation.knn.vectors import Floats
from hgsl.search.storage.layout import ImageFile

FLUSH_SECONDS = 5.0  # between parts: the work that a crash can lose

VectorRow = tuple[Floats, int]  # a matrix and the number of a row in it


class PendingEmbeddings:
    """The folder of parts.

    Args:
        folder: Created with the first part.
        fingerprint: Of the model; parts of another model are ignored.

    Attributes:
        vectors: Image file -> its vector, from all complete parts.
    """

    def __init__(self, folder: Path, fingerprint: str) -> None:
        self.folder = folder
        self.fingerprint = fingerprint
        self.vectors: dict[ImageFile, VectorRow] = {}
        self._images: list[ImageFile] = []
        self._matrices: list[Floats] = []
        self._last_flush = time.monotonic()
        self._number = 0
        for path in sorted(folder.glob("[0-9]*.json")):
            self._read(path)

    def add(self, images: list[ImageFile], vectors: Floats) -> None:
        """Adds the vectors of a batch, (B, D), and writes a part every ``FLUSH_SECONDS``."""
        if images:
            self._images += images
            self._matrices.append(vectors)
        if time.monotonic() - self._last_flush > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Writes what was added since the last part."""
        self._last_flush = time.monotonic()
        if not self._images:
            return
        path = self.folder / f"{self._number + 1:06}.json"
        with atomic_path(path.with_suffix(".npy")) as temporary:
            np.save(temporary, np.concatenate(self._matrices))
        checksum = word_sum(path.with_suffix(".npy"))
        write_json(path, {"model": self.fingerprint, "checksum": checksum, "images": self._images})
        self._images, self._matrices = [], []
        self._read(path)

    def remove(self) -> None:
        """Removes all parts: they belong to a snapshot now."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _read(self, path: Path) -> None:
        """Reads a part; a damaged one, or one of another model, is ignored."""
        self._number = max(self._number, int(path.stem))
        try:
            part = read_json(path)
            if part["model"] != self.fingerprint or part["checksum"] != word_sum(path.with_suffix(".npy")):
                return
            images = [ImageFile(*image) for image in part["images"]]
            matrix: Floats = np.load(path.with_suffix(".npy"), mmap_mode="r", allow_pickle=False)
            vectors: dict[ImageFile, VectorRow] = {image: (matrix, row) for row, image in enumerate(images)}
        except (InputError, OSError, EOFError, KeyError, TypeError, ValueError):
            return
        if len(vectors) == len(matrix):
            self.vectors |= vectors
