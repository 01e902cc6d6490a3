"""The folder of an index, and the one moment at which a new state of it counts.

    index.json             what the index is: model, preprocessing, threshold, and the files that hold this state
    embeddings.N.npy       (photos, D) float32 of unit norm, row i belongs to photo i
    photos.N.json          paths, sizes, times, labels; the broken photos with their reasons
    neighbors.N.faiss     the FAISS index of a factory string; a flat index is the embeddings themselves
    model/                 model.safetensors and model.json, so that a query needs nothing but this folder
    unfinished/            what a killed run has computed

The files of state N + 1 are written beside those of state N, then ``index.json`` is replaced: whoever reads, at any
moment and after any crash, sees one state or the other. Nothing is unpickled.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.lib.format import open_memmap

from hgsl.common import files
from hgsl.common.errors import InputError
from hgsl.common.files import atomic_path, read_json, write_json
from hgsl.common.fingerprint import file_checksum
from hgsl.common.paths import is_inside
from hgsl.evaluation.knn.vectors import Floats, Vectors, load_array, open_vectors
from hgsl.search import neighbors as neighbors
from hgsl.search.photos import Photo

RECORD, MODEL, UNFINISHED, LOCK = "index.json", "model", "unfinished", ".lock"
MODEL_COMPLETE = "model.json"  # the file of the model's two that is written last
FORMAT = 1
KEYS = {"format": int, "state": int, "root": str, "faiss": str, "model": dict, "files": dict}

Read = TypeVar("Read")


@dataclass(frozen=True)
class Table:
    """The photos of an index.

    Attributes:
        photos: One a row.
        labels: One a row; None where there is none.
        broken: Photo -> why it could not be read.
    """

    photos: list[Photo]
    labels: list[str | None]
    broken: dict[Photo, str]


@dataclass(frozen=True)
class State:
    """What an index holds: ``index.json``, the photos, and one vector a photo, (photos, D), mapped from the file."""

    record: dict[str, Any]
    table: Table
    vectors: Vectors


def locked(folder: Path) -> AbstractContextManager[None]:
    """Holds the folder for this process.

    Raises:
        InputError: Another process is writing there.
    """
    return files.locked(folder / LOCK, f"another process is writing to {folder}: wait for it to end")


def read(folder: Path) -> State:
    """Opens the index in ``folder``.

    Raises:
        FileNotFoundError: There is none.
        InputError: A file is missing, is damaged, or was not written by hgsl.
    """
    return _latest(folder, partial(_read_state, folder))


def read_to_search(folder: Path) -> tuple[State, neighbors.Backend]:
    """The same as :func:`read`, and the k-NN backend over the vectors of that state."""

    def both(record: dict[str, Any]) -> tuple[State, neighbors.Backend]:
        state = _read_state(folder, record)
        return state, _backend(folder, state)

    return _latest(folder, both)


def _latest(folder: Path, read_files: Callable[[dict[str, Any]], Read]) -> Read:
    """Reads the files of a state; if they are gone since another has just replaced it, those of the other."""
    before: dict[str, Any] = {}
    while (record := read_record(folder)) != before:
        try:
            return read_files(record)
        except FileNotFoundError:
            before = record
    names = [_plain_name(name) for key, name in record["files"].items() if key != "neighbors_sha256"]
    missing = [name for name in names if not (folder / name).is_file()]
    raise InputError(f"{folder} lacks {', '.join(missing)}: remove it and make the index anew with hgsl-search index")


def read_record(folder: Path) -> dict[str, Any]:
    """The checked contents of ``index.json``; see :func:`read`."""
    path = folder / RECORD
    if not path.is_file():
        unfinished = (folder / UNFINISHED).is_dir()
        way_out = "its first run was cut off, start it again" if unfinished else "make one with hgsl-search index"
        raise FileNotFoundError(f"no index in {folder}: {way_out}")
    record = read_json(path, "the record of an index")
    for key, kind in KEYS.items():
        if not isinstance(record.get(key), kind):
            raise InputError(f"{path} has no usable {key!r}: it was not written by hgsl, or was changed since")
    if record["format"] != FORMAT:
        raise InputError(f"{path} is of format {record['format']}, this hgsl reads {FORMAT}: make the index anew")
    no_match = record.get("no_match")
    if no_match is not None and not (isinstance(no_match, dict) and isinstance(no_match.get("threshold"), float)):
        raise InputError(f"{path} has no usable threshold in 'no_match': give one with hgsl-search index --no-match")
    return record


def _read_state(folder: Path, record: dict[str, Any]) -> State:
    files = record["files"]
    path = folder / _plain_name(files.get("photos"))
    table = _table(read_json(path, "the photos of an index"), path)
    vectors = open_vectors(load_array(folder / _plain_name(files.get("embeddings")), "embeddings"))
    if len(vectors) != len(table.photos):
        raise InputError(f"{folder}: {len(vectors)} vectors for {len(table.photos)} photos: the index is damaged")
    return State(record, table, vectors)


def write(
    folder: Path, table: Table, width: int, rows: Callable[[slice], Floats], record: dict[str, Any], chunk: int = 4096
) -> None:
    """Makes these photos and vectors the state of the folder.

    Args:
        table: The photos.
        width: D.
        rows: Slice of photos -> their vectors; it is called in order, for ``chunk`` photos at a time.
        record: What ``index.json`` says, but for the format, the state's number and its files.
    """
    number = 1 + (read_record(folder)["state"] if (folder / RECORD).is_file() else 0)
    files: dict[str, Any] = {"embeddings": f"embeddings.{number}.npy", "photos": f"photos.{number}.json"}
    count = len(table.photos)
    with atomic_path(folder / files["embeddings"]) as temporary:
        array = open_memmap(temporary, mode="w+", dtype=np.float32, shape=(count, width))
        for start in range(0, count, chunk):
            part = slice(start, min(start + chunk, count))
            array[part] = rows(part)
        array.flush()
        del array
    names = sorted({label for label in table.labels if label is not None})
    place: dict[str | None, int] = {None: -1, **{name: i for i, name in enumerate(names)}}
    write_json(
        folder / files["photos"],
        {
            "paths": [photo.path for photo in table.photos],
            "sizes": [photo.size for photo in table.photos],
            "times": [photo.mtime_ns for photo in table.photos],
            "labels": [place[label] for label in table.labels],
            "label_names": names,
            "broken": [[*photo, reason] for photo, reason in table.broken.items()],
        },
    )
    if record["faiss"] != neighbors.FLAT:
        files["neighbors"] = f"neighbors.{number}.faiss"
        vectors = open_vectors(load_array(folder / files["embeddings"], "embeddings"))
        with atomic_path(folder / files["neighbors"]) as temporary:
            neighbors.write(vectors, record["faiss"], temporary)
        files["neighbors_sha256"] = file_checksum(folder / files["neighbors"])
    write_json(folder / RECORD, {"format": FORMAT, "state": number, **record, "files": files})
    _remove_others(folder, set(files.values()))


def _backend(folder: Path, state: State) -> neighbors.Backend:
    if state.record["faiss"] == neighbors.FLAT:
        return neighbors.flat(state.vectors)
    path = folder / _plain_name(state.record["files"].get("neighbors"))
    # FAISS trusts what it reads, so nothing reaches it that is not what was written.
    if file_checksum(path) != state.record["files"].get("neighbors_sha256"):
        raise InputError(f"{path} is damaged: make it anew with hgsl-search index")
    return neighbors.read(path, len(state.table.photos), state.vectors.width, state.record["faiss"])


def _table(content: dict[str, Any], path: Path) -> Table:
    try:
        names = [str(name) for name in content["label_names"]]
        labels = [names[label] if label >= 0 else None for label in content["labels"]]
        columns = zip(content["paths"], content["sizes"], content["times"], strict=True)
        photos = [Photo(str(name), int(size), int(time)) for name, size, time in columns]
        broken = {Photo(str(name), int(size), int(time)): str(why) for name, size, time, why in content["broken"]}
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise InputError(f"{path} is damaged ({type(error).__name__}: {error}): make the index anew") from None
    if len(labels) != len(photos):
        raise InputError(f"{path} is damaged: {len(labels)} labels for {len(photos)} photos")
    _check_inside([photo.path for photo in photos], path)
    return Table(photos, labels, broken)


def _check_inside(paths: Sequence[str], source: Path) -> None:
    for path in paths:
        if not is_inside(path):
            raise InputError(f"{source} lists {path!r}, which is not inside the folder of photos: it was tampered with")


def _plain_name(name: Any) -> str:
    if not isinstance(name, str) or not name or name != Path(name).name:
        raise InputError(f"{RECORD} names the file {name!r}, expected one beside it: it was tampered with")
    return name


def _remove_others(folder: Path, kept: set[str]) -> None:
    """Removes the files of earlier states; who has them open keeps reading them."""
    for name in ("embeddings", "photos", "neighbors"):
        for path in (*folder.glob(f"{name}.*"), *folder.glob(f".{name}.*")):  # hidden: cut off while it was written
            if path.name not in kept:
                path.unlink(missing_ok=True)
