"""Layout of an index folder.

    index.json          the state: model, preprocessing, threshold, and how much of the files below belongs to it
    embeddings.N.npy    (rows, D) float32 of unit norm
    images.N.jsonl      lines of rows: number, path, size, modification time, label and table columns of each image; the
                        rows that were removed; unreadable images with the reason
    vectors.M.faiss     the FAISS index of a factory string; a flat index reads the embeddings themselves
    model/              model.safetensors and model.json, so that a query needs nothing outside this folder

An update appends to embeddings and images, then replaces ``index.json``, which has the number of valid rows and bytes:
a reader sees one state or the other, at any moment and after any crash, and a new image costs the bytes of one image.
What an interrupted update has appended is taken over by the next one. When many rows are removed ones, an update writes
the files anew, with the next N. No file is unpickled.
"""

import re
from contextlib import AbstractContextManager
from pathlib import Path

from hgsl.common import files

RECORD, MODEL, LOCK = "index.json", "model", ".lock"
MODEL_COMPLETE = "model.json"  # written last of the two files of the model
FOLDERS = "folders"  # as the source of labels: the names of the class folders
STATE_FILE = re.compile(r"(embeddings\.\d+\.npy|images\.\d+\.jsonl|vectors\.\d+\.faiss)", re.ASCII)


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


def state_files(folder: Path) -> list[Path]:
    """The embeddings, images and FAISS files in the folder, of any state; none if there is no folder."""
    return [path for path in folder.glob("*.*.*") if STATE_FILE.fullmatch(path.name)]


def last_number(folder: Path, prefix: str = "") -> int:
    """The highest number in the names of these files, or of those with a prefix, whether a state names them or not."""
    names = [path.name for path in state_files(folder) if path.name.startswith(prefix)]
    return max((int(name.split(".")[1]) for name in names), default=0)
