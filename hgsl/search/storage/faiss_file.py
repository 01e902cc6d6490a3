"""k-NN backends of an index: all vectors straight from the memory-mapped file, or a FAISS index stored in a file."""

from pathlib import Path
from typing import Any

import faiss

from hgsl.common.errors import InputError
from hgsl.evaluation.knn.backends import Backend, build_faiss, from_faiss, on_cpu, set_parameters
from hgsl.evaluation.knn.vectors import Vectors

FLAT, METRIC = "Flat", "cosine"
MAX_MEMORY = 1 << 30


def flat(vectors: Vectors) -> Backend:
    """The exact backend: compares a query with every vector."""
    return on_cpu(vectors, METRIC, MAX_MEMORY)


def write(vectors: Vectors, factory: str, path: Path) -> None:
    """Builds the FAISS index of a factory string and writes it.

    Raises:
        InputError: FAISS does not know the string, or there are too few vectors to train it on.
        OSError: The file cannot be written.
    """
    index = build_faiss(vectors, METRIC, factory)
    try:
        faiss.write_index(index, str(path))
    except RuntimeError as error:  # the library's error for a full or read-only disk
        raise OSError(f"cannot write {path}: {str(error).strip().splitlines()[-1]}") from None


def read(path: Path, count: int, width: int, factory: str) -> Backend:
    """Opens a FAISS file that is known to be undamaged.

    Raises:
        FileNotFoundError: It no longer exists.
        InputError: It does not hold ``count`` vectors of ``width`` dimensions.
    """
    try:
        index: Any = faiss.read_index(str(path))
        set_parameters(index, factory.partition(" ")[2])  # not every index type stores them in its file
    except RuntimeError as error:
        if not path.is_file():
            raise FileNotFoundError(f"no file {path}") from None
        raise InputError(f"{path} cannot be read: {str(error).strip().splitlines()[-1]}") from None
    if (index.ntotal, index.d) != (count, width):
        raise InputError(
            f"{path} holds {index.ntotal} vectors of {index.d} dimensions, expected {count} of {width}: rebuild the "
            "index with hgsl-search index"
        )
    return from_faiss(index, METRIC)
