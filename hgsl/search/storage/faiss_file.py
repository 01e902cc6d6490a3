"""k-NN backends of an index: exact search in the memory-mapped vectors, or a FAISS index stored in a file."""

from pathlib import Path
from typing import Any

import faiss

from hgsl.common.errors import InputError
from hgsl.common.faiss_factory import reason_of, set_parameters
from hgsl.evaluation.knn.backends import Backend, build_faiss, from_faiss, on_cpu
from hgsl.evaluation.knn.vectors import Vectors

METRIC = "cosine"
MAX_MEMORY = 1 << 30


def flat(vectors: Vectors) -> Backend:
    """The exact backend: compares a query with every vector."""
    return on_cpu(vectors, METRIC, MAX_MEMORY)


def write(vectors: Vectors, factory: str, path: Path) -> None:
    """Builds the FAISS index of a factory string and writes it.

    Raises:
        InputError: FAISS cannot parse the string, or there are too few vectors to train the index.
    """
    faiss.write_index(build_faiss(vectors, METRIC, factory), str(path))


def read(path: Path, count: int, width: int, factory: str) -> Backend:
    """Opens a FAISS file whose checksum was verified.

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
        raise InputError(f"{path} cannot be read: {reason_of(error)}") from None
    if (index.ntotal, index.d) != (count, width):
        raise InputError(
            f"{path} holds {index.ntotal} vectors of {index.d} dimensions, expected {count} of {width}: rebuild the "
            "index with hgsl-search index"
        )
    return from_faiss(index, METRIC)
