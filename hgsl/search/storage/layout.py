"""Layout of an index folder.

    index.json          model, preprocessing, threshold, and the files of the current snapshot
    embeddings.N.npy    (images, D) float32 of unit norm; row i belongs to image i
    images.N.json       path, size, modification time and label of each image; unreadable images with the reason
    vectors.N.faiss     the FAISS index of a factory string; a flat index reads the embeddings themselves
    model/              model.safetensors and model.json, so that a query needs nothing outside this folder
    pending/            embeddings of an interrupted run

Snapshot N + 1 is written beside snapshot N, then ``index.json`` is replaced: a reader sees one snapshot or the other,
at any moment and after any crash. No file is unpickled.
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from hgsl.common import files

RECORD, MODEL, PENDING, LOCK = "index.json", "model", "pending", ".lock"
MODEL_COMPLETE = "model.json"  # written last of the two files of the model
FOLDERS = "folders"  # as the source of labels: the names of the class folders
SNAPSHOT_FILES = ("embeddings", "images", "vectors")


class ImageFile(NamedTuple):
    """An image file as listed. Equal values mean that the file has not been modified."""

    path: str  # relative to the image folder, POSIX
    size: int  # bytes
    mtime_ns: int


@dataclass(frozen=True)
class ImageTable:
    """The images of a snapshot.

    Attributes:
        images: One per row.
        labels: One per row; None where an image has no label.
        broken: Image file -> why it could not be read; these have no row.
    """

    images: list[ImageFile]
    labels: list[str | None]
    broken: dict[ImageFile, str]


def locked(folder: Path) -> AbstractContextManager[None]:
    """Locks the index folder for this process.

    Raises:
        InputError: Another process is writing there.
        OSError: The folder cannot be created or written.
    """
    return files.locked(folder / LOCK, f"another process is writing to {folder}: wait until it has finished")


def has_model(folder: Path) -> bool:
    """Whether the folder holds a complete copy of its model."""
    return (folder / MODEL / MODEL_COMPLETE).is_file()


def has_index(folder: Path) -> bool:
    """Whether the folder holds an index, intact or not."""
    return (folder / RECORD).is_file()
