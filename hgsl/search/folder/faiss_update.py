"""The FAISS index of the next state: new rows are added, its file is written when it lacks many, trained if asked."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from hgsl.common.errors import InputError
from hgsl.common.faiss_factory import FLAT
from hgsl.common.files import atomic_path
from hgsl.common.fingerprint import file_checksum
from hgsl.evaluation.knn.backends import Backend
from hgsl.evaluation.knn.vectors import Ints, Vectors
from hgsl.search.folder import faiss_file
from hgsl.search.folder.layout import last_number
from hgsl.search.folder.reader import open_faiss

UNINDEXED_SHARE = 0.2  # of the rows: with more, which every reader adds when it opens the file, it is written again


class FaissUpdate(NamedTuple):
    """The backend over all rows, and the entries of the record.

    Attributes:
        backend: Over all rows.
        files: Name, checksum and number of rows of the FAISS file; empty for a flat index.
        trained: Number of images and imbalance of the cells when the index was trained; None for a flat index.
        advice: That it should be trained again, or None.
    """

    backend: Backend
    files: dict[str, Any]
    trained: dict[str, Any] | None
    advice: str | None


def update_faiss(
    folder: Path,
    record: Mapping[str, Any],
    previous: Mapping[str, Any] | None,
    vectors: Vectors,
    live: Ints,
    rewritten: bool,
    retrain: bool,
) -> FaissUpdate:
    """Brings the FAISS index of the previous state up to date.

    Args:
        folder: The index folder.
        record: Settings of the next state.
        previous: Record of the previous state.
        vectors: All rows of the next state.
        live: Those that are not removed.
        rewritten: Whether rows have other positions than in the previous state.
        retrain: Whether the index is trained anew.
    """
    factory = record["index_type"]
    if factory == FLAT:
        return FaissUpdate(faiss_file.flat(vectors), {}, None, None)
    index = None if retrain else _previous_index(folder, factory, previous)
    if index is None or previous is None:
        index = faiss_file.train(vectors, factory, live)
        trained = {"images": len(live), "imbalance": faiss_file.imbalance(index)}
        return FaissUpdate(faiss_file.backend(index), _write(folder, index), trained, None)
    trained, files = previous["trained"], {key: previous["files"][key] for key in previous["files"] if "vectors" in key}
    if rewritten:
        index.reset()  # keeps what it was trained on
    unindexed = len(vectors) - index.ntotal
    faiss_file.add(index, vectors)
    if unindexed > UNINDEXED_SHARE * len(vectors):
        files = _write(folder, index)
    advice = faiss_file.training_advice(factory, trained, len(live), faiss_file.imbalance(index))
    return FaissUpdate(faiss_file.backend(index), files, trained, advice)


def is_intact(folder: Path, record: Mapping[str, Any]) -> bool:
    """Whether the FAISS file of a state, if it has one, exists and is undamaged."""
    return record["index_type"] == FLAT or _previous_index(folder, record["index_type"], record) is not None


def _previous_index(folder: Path, factory: str, previous: Mapping[str, Any] | None) -> Any:
    """The index of the previous state, if it is one of the same factory and undamaged; None otherwise."""
    if previous is None or previous["index_type"].partition(" ")[0] != factory.partition(" ")[0]:
        return None
    try:
        return open_faiss(folder, {**previous, "index_type": factory})
    except (InputError, OSError):
        return None


def _write(folder: Path, index: Any) -> dict[str, Any]:
    path = folder / f"vectors.{last_number(folder) + 1}.faiss"
    with atomic_path(path) as temporary:
        faiss_file.write(index, temporary)
    return {"vectors": path.name, "vectors_sha256": file_checksum(path), "vectors_rows": index.ntotal}
