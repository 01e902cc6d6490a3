"""Vectors of images from a folder of parts, in place of embedding the images."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hgsl.common.errors import InputError
from hgsl.common.paths import is_inside, is_uri
from hgsl.common.progress import progress_bar
from hgsl.evaluation.knn.vectors import Floats
from hgsl.evaluation.parts.part import AGAIN, list_parts, read_columns, read_part
from hgsl.search.encoder import Encoder
from hgsl.search.indexing.image_folder import FolderListing
from hgsl.search.stores.protocol import ImageFile, ImageRow, Update

FILE_COLUMNS = ("path", "size", "mtime_ns")  # of an ImageFile


class StoredEmbeddings(NamedTuple):
    """The parts in a folder.

    Attributes:
        folder: The folder.
        paths: Their files, in the order of their first images.
        images: The images that have a vector, of several versions of a file the newest, sorted.
        roots: The image folders or addresses that the paths are relative to.
        repeated: Number of further vectors of these images.
    """

    folder: Path
    paths: list[Path]
    images: list[ImageFile]
    roots: set[str]
    repeated: int

    def root(self) -> str:
        """The image folder or address that all paths are relative to.

        Raises:
            InputError: There are several, or no images.
        """
        if not self.images:
            raise InputError(
                f"{self.folder} holds no embeddings of images: hgsl-search index --engine ray --parts {self.folder} "
                "writes some"
            )
        if len(self.roots) > 1:
            first, second, *_ = sorted(self.roots)
            raise InputError(f"{self.folder} holds embeddings of images in {first} and in {second}: name the image "
                             "folder with --images")  # fmt: skip
        return next(iter(self.roots))

    def listing(self, notes: list[str]) -> FolderListing:
        """The images as the contents of an image folder; a message about repeated ones is appended to ``notes``."""
        if self.repeated:
            notes.append(f"{self.repeated:,} of the embeddings in {self.folder} are of images that others are of, too: "
                         "of each image, its newest version is indexed")  # fmt: skip
        return FolderListing(list(self.images), Counter(), {})


def open_stored(folder: Path, encoder: Encoder, skip_other_models: bool = False) -> StoredEmbeddings:
    """Lists the images of the parts in a folder.

    Args:
        folder: The folder; without one, there are no parts.
        encoder: The model that must have embedded them.
        skip_other_models: Whether parts of other models are left out; otherwise they are an error.

    Raises:
        InputError: A part is damaged, is of another model, or holds no image files.
    """
    newest: dict[str, ImageFile] = {}
    firsts: list[tuple[str, Path]] = []
    roots: set[str] = set()
    count = 0
    for path in list_parts(folder):
        record, columns = read_columns(path, FILE_COLUMNS)
        if skip_other_models and record.get("model") != encoder.fingerprint:
            continue
        _check_record(path, record, encoder)
        files = files_of(columns)
        _check_files(path, files)
        for file in files:
            if file.path not in newest or _version(newest[file.path]) < _version(file):
                newest[file.path] = file
        count += len(files)
        roots.add(str(record["root"]))
        firsts.append((files[0].path if files else "", path))
    paths = [path for _, path in sorted(firsts)]
    return StoredEmbeddings(folder, paths, sorted(newest.values()), roots, count - len(newest))


def add_stored(
    rows: Sequence[ImageRow], paths: Sequence[Path], encoder: Encoder, update: Update, progress: bool
) -> list[ImageRow]:
    """Adds images with their vectors in parts to an index; of several vectors of an image, the first.

    Returns:
        The images that no part has a vector of.

    Raises:
        InputError: A part is damaged.
    """
    wanted = {row.file: row for row in rows}
    try:
        with progress_bar(shown=progress, log_lines=True, total=len(rows), desc="indexing", unit="image") as bar:
            for path in paths:
                record, columns, vectors = read_part(path, FILE_COLUMNS)
                _check_record(path, record, encoder)
                files = enumerate(files_of(columns))
                wanted_rows = [(position, wanted.pop(file)) for position, file in files if file in wanted]
                part = vectors[[position for position, _ in wanted_rows]]
                _check_vectors(path, part, encoder)
                update.upsert([row for _, row in wanted_rows], part)
                bar.update(len(wanted_rows))
    finally:
        update.flush()  # also after Ctrl-C
    return [row for row in rows if row.file in wanted]


def files_of(columns: Any) -> list[ImageFile]:
    """The image files in the columns of a part."""
    return [ImageFile(*values) for values in zip(*(columns[name] for name in FILE_COLUMNS), strict=True)]


def _version(file: ImageFile) -> tuple[int, int]:
    return file.mtime_ns, file.size


def _check_record(path: Path, record: Any, encoder: Encoder) -> None:
    if record.get("model") != encoder.fingerprint:
        raise InputError(
            f"{path} holds embeddings of another model ({record.get('model')}, not {encoder.fingerprint}): give that "
            "model with --checkpoint, or other parts"
        )


def _check_files(path: Path, files: Sequence[ImageFile]) -> None:
    outside = next((file.path for file in files if not is_uri(file.path) and not is_inside(file.path)), None)
    if outside is not None:
        raise InputError(f"{path} lists {outside!r}, which is not inside the image folder: it was tampered with")


def _check_vectors(path: Path, vectors: Floats, encoder: Encoder) -> None:
    if len(vectors) and vectors.shape[1] != encoder.dimensions:
        raise InputError(f"{path} has vectors of {vectors.shape[1]} dimensions, not {encoder.dimensions}: {AGAIN}")
    if not (np.isfinite(vectors).all() and (vectors != 0).any(axis=1).all()):
        raise InputError(f"{path} has vectors that are zero or not finite: {AGAIN}")
