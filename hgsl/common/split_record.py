"""Record of a run's images in the run folder: split, class and fingerprint of each."""

import gzip
import json
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hgsl.common.errors import InputError
from hgsl.common.files import atomic_path

FILE_NAME = "split.jsonl.gz"


@dataclass(frozen=True)
class SplitRecord:
    """The N images of a run in the order of its manifest; the columns are those of ``hgsl.data.Manifest``.

    Attributes:
        fingerprints: Text that tells the content of each file from others, empty where images are drawn.
        boxes: One x1, y1, x2, y2 per image, or None; an image file is listed once per box.
    """

    protocol: str
    notes: tuple[str, ...]
    class_names: tuple[str, ...]
    paths: tuple[str, ...]
    fingerprints: tuple[str, ...]
    labels: NDArray[np.int64]
    split: NDArray[np.str_]
    is_query: NDArray[np.bool_]
    is_gallery: NDArray[np.bool_]
    boxes: tuple[tuple[float, ...], ...] | None = None

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def trained_classes(self) -> frozenset[str]:
        """The names of the classes with training images."""
        return frozenset(self.class_names[label] for label in np.unique(self.labels[self.split == "train"]))


def write_split_record(folder: str | os.PathLike[str], record: SplitRecord) -> None:
    """Writes ``record`` into a run folder, atomically: compressed JSON, a header and then one line per image.

    Raises:
        OSError: The folder cannot be written, or the disk is full.
    """
    names = ["path", "fingerprint", "class", "split", "is_query", "is_gallery", *(["box"] if record.boxes else [])]
    header = {
        "protocol": record.protocol,
        "notes": record.notes,
        "classes": record.class_names,
        "columns": names,
    }
    columns: list[Sequence[Any]] = [record.paths, record.fingerprints, record.labels.tolist(), record.split.tolist()]
    columns += [record.is_query.astype(int).tolist(), record.is_gallery.astype(int).tolist()]
    rows = zip(*columns, *([record.boxes] if record.boxes else []), strict=True)
    with (
        atomic_path(Path(folder) / FILE_NAME) as temporary,
        temporary.open("wb") as file,
        gzip.GzipFile("", "wb", 6, file, mtime=0) as out,  # no time in it: equal splits are equal files
    ):
        for line in (header, *rows):
            out.write(json.dumps(line, ensure_ascii=False, separators=(",", ":")).encode() + b"\n")


def read_split_record(folder: str | os.PathLike[str]) -> SplitRecord | None:
    """Returns the record in a run folder, or None if there is none.

    Raises:
        OSError: It cannot be read.
        InputError: It is damaged.
    """
    path = Path(folder) / FILE_NAME
    if not path.is_file():
        return None
    try:
        with gzip.open(path, "rb") as file:
            header = json.loads(next(file))
            rows = [json.loads(line) for line in file]
        return _record(header, rows)
    except (LookupError, ValueError, TypeError, StopIteration, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(
            f"{path} is damaged ({type(error).__name__}: {error}): without it nothing tells trained classes from "
            "others, so restore it from a copy"
        ) from None


def _record(header: dict[str, Any], rows: Sequence[Any]) -> SplitRecord:
    paths, fingerprints, labels, split, is_query, is_gallery, *boxes = zip(*rows, strict=True)
    class_names = tuple(map(str, header["classes"]))
    labels_array = np.array(labels, np.int64)
    class_names[int(labels_array.max())]  # raises where the header lacks a class
    return SplitRecord(
        protocol=str(header["protocol"]),
        notes=tuple(map(str, header["notes"])),
        class_names=class_names,
        paths=tuple(map(str, paths)),
        fingerprints=tuple(map(str, fingerprints)),
        labels=labels_array,
        split=np.array(split, np.str_),
        is_query=np.array(is_query, bool),
        is_gallery=np.array(is_gallery, bool),
        boxes=tuple(tuple(map(float, box)) for box in boxes[0]) if boxes else None,
    )
