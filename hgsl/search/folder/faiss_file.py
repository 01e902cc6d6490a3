"""k-NN backends of an index: exact search in the memory-mapped vectors, or a FAISS index stored in a file."""

from pathlib import Path
from typing import Any

import faiss
import numpy as np

from hgsl.common.errors import InputError
from hgsl.common.faiss_factory import reason_of, set_parameters
from hgsl.evaluation.knn.backends import Backend, build_faiss, from_faiss, on_cpu
from hgsl.evaluation.knn.vectors import Ints, Vectors

METRIC = "cosine"
MAX_MEMORY = 1 << 30
GROWN = 2.0  # times the images, or the imbalance of the cells, at which an index should be trained again


def flat(vectors: Vectors) -> Backend:
    """The exact backend: compares a query with every vector."""
    return on_cpu(vectors, METRIC, MAX_MEMORY)


def train(vectors: Vectors, factory: str, live: Ints) -> Any:
    """Trains a FAISS index on the rows ``live`` and fills it with all rows.

    Raises:
        InputError: FAISS cannot parse the string, or there are too few vectors to train the index.
    """
    index = build_faiss(vectors.pick(live), METRIC, factory)
    if len(live) < len(vectors):
        index.reset()
        add(index, vectors)
    return index


def add(index: Any, vectors: Vectors) -> None:
    """Adds those rows to a trained index that it does not hold yet."""
    start = index.ntotal
    for chunk in vectors.pick(np.arange(start, len(vectors))).chunks() if start < len(vectors) else ():
        index.add(vectors.rows(slice(start + chunk.start, start + chunk.stop)))


def write(index: Any, path: Path) -> None:
    """Writes a FAISS index."""
    faiss.write_index(index, str(path))


def imbalance(index: Any) -> float | None:
    """The imbalance of the cells of an IVF index (1: all have the same size); None for another index."""
    inverted: Any = faiss.try_extract_index_ivf(index)
    return float(inverted.invlists.imbalance_factor()) if inverted else None


def training_advice(factory: str, trained: dict[str, Any], images: int, current: float | None) -> str | None:
    """The message that an index should be trained again; None if it need not be.

    Args:
        factory: Its FAISS factory string.
        trained: Number of ``images`` and ``imbalance`` of the cells when it was trained.
        images: Number of images now.
        current: Imbalance of the cells now.
    """
    reasons = []
    if images >= GROWN * trained["images"]:
        reasons.append(f"it was trained on {trained['images']:,} images and holds {images:,}")
    if current is not None and trained["imbalance"] is not None and current >= GROWN * trained["imbalance"]:
        reasons.append(f"the imbalance of its cells grew from {trained['imbalance']:.2f} to {current:.2f}")
    if not reasons:
        return None
    return f"the index {factory!r} should be trained again, with hgsl-search index --retrain: {' and '.join(reasons)}"


def read(path: Path, rows: int, width: int, factory: str) -> Any:
    """Reads a FAISS file whose checksum was verified.

    Raises:
        FileNotFoundError: It no longer exists.
        InputError: It does not hold ``rows`` vectors of ``width`` dimensions.
    """
    try:
        index: Any = faiss.read_index(str(path))
        set_parameters(index, factory.partition(" ")[2])  # not every index type stores them in its file
    except RuntimeError as error:
        if not path.is_file():
            raise FileNotFoundError(f"no file {path}") from None
        raise InputError(f"{path} cannot be read: {reason_of(error)}") from None
    if (index.ntotal, index.d) != (rows, width):
        raise InputError(
            f"{path} holds {index.ntotal} vectors of {index.d} dimensions, expected {rows} of {width}: rebuild the "
            "index with hgsl-search index"
        )
    return index


def backend(index: Any) -> Backend:
    """The k-NN backend of a FAISS index."""
    return from_faiss(index, METRIC)
