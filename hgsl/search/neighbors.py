"""k-NN backends of an index: the embeddings themselves, compared one by one, or a FAISS index in a file."""

from pathlib import Path
from typing import Any

import faiss

from hgsl.common.errors import InputError
from hgsl.evaluation.knn.backends import Backend, build_faiss, from_faiss, on_cpu, set_parameters
from hgsl.evaluation.knn.vectors import Vectors

FLAT, METRIC = "Flat", "cosine"
MAX_MEMORY = 1 << 30


def flat(vectors: Vectors) -> Backend:
    """Compares with every vector, straight from the mapped file: exact."""
    return on_cpu(vectors, METRIC, MAX_MEMORY)


def write(vectors: Vectors, factory: str, path: Path) -> None:
    """Builds the FAISS index of a factory string and writes it.

    Raises:
        InputError: FAISS does not know the string, or there are too few photos for it.
    """
    faiss.write_index(build_faiss(vectors, METRIC, factory), str(path))


def read(path: Path, count: int, width: int, factory: str) -> Backend:
    """Opens a FAISS file that is known to be whole.

    Raises:
        FileNotFoundError: It is no longer there.
        InputError: It does not hold ``count`` vectors of ``width`` numbers.
    """
    try:
        index: Any = faiss.read_index(str(path))
        set_parameters(index, factory.partition(" ")[2])  # not every kind keeps them in its file
    except RuntimeError as error:
        if not path.is_file():
            raise FileNotFoundError(f"no file {path}") from None
        raise InputError(f"{path} cannot be read: {str(error).strip().splitlines()[-1]}") from None
    if (index.ntotal, index.d) != (count, width):
        raise InputError(
            f"{path} holds {index.ntotal} vectors of {index.d} numbers, expected {count} of {width}: make it anew"
        )
    return from_faiss(index, METRIC)
