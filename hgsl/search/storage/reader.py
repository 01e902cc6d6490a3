"""Reading an index folder: every value is checked before it is used."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from hgsl.common.errors import InputError
from hgsl.common.faiss_factory import FLAT
from hgsl.common.files import read_json
from hgsl.common.paths import is_inside
from hgsl.evaluation.knn.backends import Backend
from hgsl.evaluation.knn.vectors import Vectors, load_array, open_vectors
from hgsl.search.storage import faiss_file
from hgsl.search.storage.checksums import verified
from hgsl.search.storage.layout import ImageFile, ImageTable
from hgsl.search.storage.record import REBUILD, check_file_name, read_record

Value = TypeVar("Value")


@dataclass(frozen=True)
class Snapshot:
    """The contents of an index: ``index.json``, the images, and one vector per image, (images, D), memory-mapped."""

    record: dict[str, Any]
    table: ImageTable
    vectors: Vectors


def read_snapshot(folder: Path) -> Snapshot:
    """Opens the current snapshot of the index in ``folder``.

    Raises:
        FileNotFoundError: There is no index.
        InputError: A file is missing, is damaged, or was not written by hgsl.
    """
    return _read_current(folder, partial(_read_files, folder))


def open_snapshot(folder: Path) -> tuple[Snapshot, Backend]:
    """Opens the current snapshot together with the k-NN backend over its vectors.

    Raises:
        FileNotFoundError: There is no index.
        InputError: A file is missing, is damaged, or was not written by hgsl.
    """

    def read(record: dict[str, Any]) -> tuple[Snapshot, Backend]:
        snapshot = _read_files(folder, record)
        return snapshot, _open_backend(folder, snapshot)

    return _read_current(folder, read)


def is_intact(folder: Path, snapshot: Snapshot) -> bool:
    """Whether the FAISS file of a snapshot, if it has one, exists and is undamaged."""
    try:
        _check_faiss_file(folder, snapshot.record)
    except (InputError, OSError):
        return False
    return True


def _read_current(folder: Path, read: Callable[[dict[str, Any]], Value]) -> Value:
    """Reads the files of the current snapshot, or of the next one if that replaces it meanwhile."""
    failed: dict[str, Any] = {}
    while (record := read_record(folder)) != failed:
        try:
            return read(record)
        except FileNotFoundError:
            failed = record
        except InputError as error:
            raise InputError(str(error) if REBUILD in str(error) else f"{folder}: {error}: {REBUILD}") from error
    names = [check_file_name(name) for name in record["files"].values()]
    missing = [name for name in names if not (folder / name).is_file()]
    raise InputError(f"{folder} lacks {', '.join(missing)}: {REBUILD}")


def _read_files(folder: Path, record: dict[str, Any]) -> Snapshot:
    table_path = verified(folder, record, "images")
    table = _parse_table(read_json(table_path, "the image table of an index"), table_path)
    vectors = open_vectors(load_array(verified(folder, record, "embeddings"), "embeddings"), "embeddings")
    if len(vectors) != len(table.images):
        raise InputError(f"{folder}: {len(vectors)} vectors for {len(table.images)} images: {REBUILD}")
    return Snapshot(record, table, vectors)


def _open_backend(folder: Path, snapshot: Snapshot) -> Backend:
    path = _check_faiss_file(folder, snapshot.record)
    if path is None:
        return faiss_file.flat(snapshot.vectors)
    return faiss_file.read(path, len(snapshot.table.images), snapshot.vectors.width, snapshot.record["faiss"])


def _check_faiss_file(folder: Path, record: Mapping[str, Any]) -> Path | None:
    """The FAISS file, verified, or None for a flat index."""
    return None if record["faiss"] == FLAT else verified(folder, record, "vectors")


def _parse_table(content: Mapping[str, Any], path: Path) -> ImageTable:
    try:
        names = [str(name) for name in content["label_names"]]
        labels = [names[label] if label >= 0 else None for label in content["labels"]]
        columns = zip(content["paths"], content["sizes"], content["times"], strict=True)
        images = [ImageFile(str(name), int(size), int(time)) for name, size, time in columns]
        broken = {ImageFile(str(name), int(size), int(time)): str(text) for name, size, time, text in content["broken"]}
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise InputError(f"{path} is damaged ({type(error).__name__}: {error}): {REBUILD}") from None
    if len(labels) != len(images):
        raise InputError(f"{path} is damaged ({len(labels)} labels for {len(images)} images): {REBUILD}")
    for image in images:
        if not is_inside(image.path):
            raise InputError(f"{path} lists {image.path!r}, which is not inside the image folder: it was tampered with")
    return ImageTable(images, labels, broken)
