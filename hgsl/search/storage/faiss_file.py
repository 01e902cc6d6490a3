"""k-NN backends of an index: exact search in the memory-mapped vectors, or a FAISS index stored in a file."""

import re
from pathlib import Path
from typing import Any

import faiss

from hgsl.common.errors import InputError
from hgsl.evaluation.knn.backends import FAISS_METRICS, Backend, build_faiss, from_faiss, on_cpu, set_parameters
from hgsl.evaluation.knn.vectors import Vectors

FLAT, METRIC = "Flat", "cosine"
MAX_MEMORY = 1 << 30


def flat(vectors: Vectors) -> Backend:
    """The exact backend: compares a query with every vector."""
    return on_cpu(vectors, METRIC, MAX_MEMORY)


def check_factory(factory: str, width: int, count: int) -> None:
    """Checks before any image is embedded that a FAISS index can be built.

    Raises:
        InputError: FAISS cannot parse the string, or ``count`` vectors are too few for its cells.
    """
    if factory == FLAT:
        return
    name, _, parameters = factory.partition(" ")
    try:
        index: Any = faiss.index_factory(width, name, FAISS_METRICS[METRIC])
        set_parameters(index, parameters)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        reason = re.sub(r"^Error in .* at \S+:\d+: (Error: '.*' failed: )?", "", reason)
        raise InputError(f"FAISS cannot build the index {factory!r}: {reason}") from None
    inverted = faiss.try_extract_index_ivf(index)
    if inverted and not 0 < inverted.nlist <= count:
        raise InputError(f"the index {factory!r} cannot be built for {count} images: it has {inverted.nlist} cells")
    if inverted and not 0 < inverted.nprobe < 1 << 32:  # unsigned: -1 is very large
        raise InputError(f"the index {factory!r} would search no cell: nprobe must be at least 1")


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
        raise InputError(f"{path} cannot be read: {str(error).strip().splitlines()[-1]}") from None
    if (index.ntotal, index.d) != (count, width):
        raise InputError(
            f"{path} holds {index.ntotal} vectors of {index.d} dimensions, expected {count} of {width}: rebuild the "
            "index with hgsl-search index"
        )
    return from_faiss(index, METRIC)
