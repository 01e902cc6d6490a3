"""Reading an index folder: every value is checked before it is used."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from hgsl.common.errors import InputError
from hgsl.common.faiss_factory import FLAT
from hgsl.common.fingerprint import array_sum, file_checksum
from hgsl.evaluation.knn.backends import Backend
from hgsl.evaluation.knn.vectors import Vectors
from hgsl.search.folder import faiss_file
from hgsl.search.folder.embeddings import read_embeddings
from hgsl.search.folder.record import REBUILD, check_file_name, read_record
from hgsl.search.folder.snapshot import FolderSnapshot
from hgsl.search.folder.table import ImageTable, read_table

Contents = TypeVar("Contents")


class FolderState(NamedTuple):
    """The contents of an index folder: ``index.json``, the rows, and their vectors, (rows, D), memory-mapped."""

    record: dict[str, Any]
    table: ImageTable
    vectors: Vectors


def read_state(folder: Path) -> FolderState:
    """Reads the current state of the index in ``folder``.

    Raises:
        FileNotFoundError: There is no index.
        InputError: A file is missing, is damaged, or was not written by hgsl.
    """
    return _read_current(folder, partial(_read_files, folder))


def open_snapshot(folder: Path) -> FolderSnapshot:
    """Opens the current state of the index in ``folder`` for searching.

    Raises:
        FileNotFoundError: There is no index.
        InputError: A file is missing, is damaged, or was not written by hgsl.
    """

    def read(record: dict[str, Any]) -> FolderSnapshot:
        state = _read_files(folder, record)
        return FolderSnapshot(*state, _open_backend(folder, state))

    return _read_current(folder, read)


def open_faiss(folder: Path, record: Mapping[str, Any]) -> Any:
    """Reads the FAISS index of a state; its checksum is verified, since FAISS validates little.

    Raises:
        FileNotFoundError: It does not exist.
        InputError: It is damaged.
    """
    files = record["files"]
    path = folder / check_file_name(files.get("vectors"))
    if file_checksum(path) != files.get("vectors_sha256"):
        raise InputError(f"{path} is damaged: {REBUILD}")
    return faiss_file.read(path, files.get("vectors_rows"), record["dimensions"], record["index_type"])


def _read_current(folder: Path, read: Callable[[dict[str, Any]], Contents]) -> Contents:
    """Reads the files of the current state, or of the next one if that replaces it meanwhile."""
    failed: dict[str, Any] = {}
    while (record := read_record(folder)) != failed:
        try:
            return read(record)
        except FileNotFoundError:
            failed = record
        except InputError as error:
            raise InputError(str(error) if REBUILD in str(error) else f"{folder}: {error}: {REBUILD}") from error
    names = [check_file_name(record["files"].get(key)) for key in ("embeddings", "images", "vectors")
             if key in record["files"]]  # fmt: skip
    missing = [name for name in names if not (folder / name).is_file()]
    raise InputError(f"{folder} lacks {', '.join(missing)}: {REBUILD}")


def _read_files(folder: Path, record: dict[str, Any]) -> FolderState:
    table = read_table(folder / check_file_name(record["files"].get("images")), record["bytes"])
    vectors = read_embeddings(folder / check_file_name(record["files"].get("embeddings")), record["rows"])
    if not len(vectors) == len(table) == record["rows"]:
        raise InputError(f"{folder}: {len(vectors)} vectors for {len(table)} images: {REBUILD}")
    start = 0
    for rows, checksum in table.blocks:
        if array_sum(np.asarray(vectors.data[start : start + rows])) != checksum:
            raise InputError(f"{folder / record['files']['embeddings']} is damaged: {REBUILD}")
        start += rows
    return FolderState(record, table, vectors)


def _open_backend(folder: Path, state: FolderState) -> Backend:
    if state.record["index_type"] == FLAT:
        return faiss_file.flat(state.vectors)
    index = open_faiss(folder, state.record)
    faiss_file.add(index, state.vectors)  # rows that were appended since the file was written
    return faiss_file.backend(index)
