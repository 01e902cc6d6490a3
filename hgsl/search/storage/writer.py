"""Writing a snapshot of an index: its files first, then ``index.json`` in one atomic replacement."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hgsl.common.faiss_factory import FLAT
from hgsl.common.files import atomic_path, write_json
from hgsl.evaluation.knn.vectors import Floats, Vectors, load_array, open_vectors
from hgsl.search.storage import faiss_file
from hgsl.search.storage.checksums import CHECKSUMS
from hgsl.search.storage.layout import RECORD, SNAPSHOT_FILES, ImageTable
from hgsl.search.storage.record import FORMAT

CHUNK = 4096  # vectors written at a time
BYTES_PER_IMAGE = 300  # of the image table, roughly


def write_snapshot(
    folder: Path,
    table: ImageTable,
    record: Mapping[str, Any],
    vectors_of: Callable[[slice], Floats],
    calibrate: Callable[[Vectors], dict[str, Any] | None],
) -> dict[str, Any]:
    """Makes these images and vectors the current snapshot of the folder.

    Args:
        table: The images.
        record: The settings in ``index.json``.
        vectors_of: Slice of images -> their vectors; called in order for ``CHUNK`` images at a time.
        calibrate: Vectors of all images, memory-mapped -> the no-match threshold in ``index.json``.

    Returns:
        The complete contents of ``index.json``.
    """
    number = 1 + _last_number(folder)
    files = {"embeddings": f"embeddings.{number}.npy", "images": f"images.{number}.json"}
    _write_embeddings(folder / files["embeddings"], len(table.images), record["dimensions"], vectors_of)
    write_json(folder / files["images"], _table_columns(table))
    vectors = open_vectors(load_array(folder / files["embeddings"], "embeddings"))
    no_match = calibrate(vectors)
    if record["faiss"] != FLAT:
        files["vectors"] = f"vectors.{number}.faiss"
        with atomic_path(folder / files["vectors"]) as temporary:
            faiss_file.write(vectors, record["faiss"], temporary)
    checksums = {name: CHECKSUMS[name](folder / file) for name, file in files.items()}
    content = {"format": FORMAT, "snapshot": number, **record, "no_match": no_match}
    content |= {"files": files, "checksums": checksums}
    write_json(folder / RECORD, content)
    _remove_other_snapshots(folder, set(files.values()))
    return content


def snapshot_bytes(images: int, new_images: int, width: int, factory: str) -> int:
    """The disk space that the next snapshot takes, at most, besides the current one.

    Args:
        images: All images of the snapshot.
        new_images: Those to embed: their vectors are stored once more until the snapshot is complete.
        width: D.
        factory: Of the FAISS index.
    """
    copies = images * (1 if factory == FLAT else 2) + new_images
    return 4 * width * copies + BYTES_PER_IMAGE * images


def _write_embeddings(path: Path, count: int, width: int, vectors_of: Callable[[slice], Floats]) -> None:
    """Writes a ``.npy`` file through a stream: a full disk is an error there, and kills the process in a memory map."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (count, width)}
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, count, CHUNK):
            part = slice(start, min(start + CHUNK, count))
            file.write(np.ascontiguousarray(vectors_of(part), dtype="<f4").tobytes())


def _table_columns(table: ImageTable) -> dict[str, Any]:
    names = sorted({label for label in table.labels if label is not None})
    number_of: dict[str | None, int] = {None: -1, **{name: i for i, name in enumerate(names)}}
    return {
        "paths": [image.path for image in table.images],
        "sizes": [image.size for image in table.images],
        "times": [image.mtime_ns for image in table.images],
        "labels": [number_of[label] for label in table.labels],
        "label_names": names,
        "broken": [[*image, reason] for image, reason in table.broken.items()],
    }


def _last_number(folder: Path) -> int:
    """The highest snapshot number among the files, whether their ``index.json`` can be read or not."""
    parts = [path.name.split(".")[1] for name in SNAPSHOT_FILES for path in folder.glob(f"{name}.*")]
    return max((int(part) for part in parts if part.isdecimal()), default=0)


def _remove_other_snapshots(folder: Path, current: set[str]) -> None:
    """Removes the files of earlier snapshots; a process that has them open keeps reading them."""
    for name in SNAPSHOT_FILES:
        for path in (*folder.glob(f"{name}.*"), *folder.glob(f".{name}.*")):  # hidden: interrupted while being written
            if path.name not in current:
                path.unlink(missing_ok=True)
