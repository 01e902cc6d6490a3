"""k-NN backends: FAISS over all vectors, torch on any device over all vectors, or an approximate FAISS index.

A backend is called with queries (B, D) and a count and returns scores (B, count), larger is nearer, best first, and
positions (B, count) in the gallery; if there are fewer, it pads with score -inf and position -1. Its scores have
float32 rounding errors and its order of equal scores is arbitrary: ``knn.k_nearest`` corrects both.
"""

import warnings
from collections.abc import Callable
from typing import Any

import faiss
import numpy as np
import torch

from hgsl.common.errors import InputError
from hgsl.common.faiss_factory import check_factory, metric_of, reason_of, set_parameters
from hgsl.common.precision import float32_products
from hgsl.evaluation.knn.vectors import Floats, Ints, Vectors

Backend = Callable[[Floats, int], tuple[Floats, Ints]]

CPU_BLOCK = 256  # queries whose scores are held at a time on a CPU


def on_cpu(gallery: Vectors, metric: str, max_memory: int) -> Backend:
    """Exact search of the gallery by FAISS, without an index; a stored float32 matrix is not copied."""
    chunks = _chunks(gallery, max_memory)

    def search(queries: Floats, count: int) -> tuple[Floats, Ints]:
        best: tuple[Floats, Ints] | None = None
        for chunk in chunks:
            rows = gallery.rows(chunk)
            scores, positions = faiss.knn(queries, rows, min(count, len(rows)), metric=metric_of(metric))
            if metric == "l2":
                scores *= -1
            best = _merge(best, (scores, positions + chunk.start), count)
        assert best is not None  # a gallery has rows
        return best

    return search


def on_device(gallery: Vectors, metric: str, max_memory: int, device: torch.device) -> Backend:
    """Exact search of the gallery by torch on ``device``, where it stays if it fits in half of ``max_memory``."""
    on_cpu = device.type == "cpu"
    resident = (on_cpu and gallery.plain) or 4 * len(gallery) * gallery.width <= max_memory // 2
    # On a CPU all rows are one matrix, a view where possible: a single top k of all scores is the fastest.
    chunks = [slice(0, len(gallery))] if on_cpu else gallery.chunks()
    whole = [_shared_tensor(gallery.rows(chunk)).to(device) for chunk in chunks] if resident else []

    def search(queries: Floats, count: int) -> tuple[Floats, Ints]:
        block_size = CPU_BLOCK if on_cpu and resident else len(queries)
        with float32_products():
            blocks = _shared_tensor(queries).to(device).split(block_size)
            scores, positions = zip(*[search_block(block, count) for block in blocks], strict=True)
        return torch.cat(scores).cpu().numpy(), torch.cat(positions).cpu().numpy()

    def search_block(block: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        # The (B, chunk) matrix of scores and its sort have the other half of the memory.
        size = max(count, max_memory // (32 * len(block)))
        best: tuple[torch.Tensor, torch.Tensor] | None = None
        start = 0
        for part in whole or (_shared_tensor(gallery.rows(chunk)).to(device) for chunk in gallery.chunks()):
            for rows in part.split(size):
                scores, positions = _scores(block, rows, metric).topk(min(count, len(rows)), dim=1)
                positions = positions + start
                start += len(rows)
                if best is not None:
                    scores, positions = torch.cat([best[0], scores], 1), torch.cat([best[1], positions], 1)
                    scores, order = scores.topk(min(count, scores.shape[1]), dim=1)
                    positions = positions.gather(1, order)
                best = scores, positions
        assert best is not None  # a gallery has rows
        return best

    return search


def approximate(gallery: Vectors, metric: str, index: str) -> Backend:
    """An index by its FAISS factory string; it holds a copy of the gallery in its own format.

    Raises:
        InputError: See :func:`build_faiss`.
    """
    return from_faiss(build_faiss(gallery, metric, index), metric)


def build_faiss(gallery: Vectors, metric: str, index: str) -> Any:
    """Trains and fills a FAISS index.

    Args:
        index: A factory string, then optionally a space and search parameters: ``IVF4096,Flat nprobe=32``.

    Raises:
        InputError: As :func:`check_factory`, or the gallery is too small to train on.
    """
    check_factory(index, metric, gallery.width, len(gallery))
    factory, _, parameters = index.partition(" ")
    try:
        built: Any = faiss.index_factory(gallery.width, factory, metric_of(metric))
        if not built.is_trained:
            built.train(gallery.rows(_training_rows(built, len(gallery))))
        for chunk in gallery.chunks():
            built.add(gallery.rows(chunk))
        set_parameters(built, parameters)
    except RuntimeError as error:
        raise InputError(
            f"the index {index!r} cannot be built for {len(gallery)} vectors: {reason_of(error)}"
        ) from error
    return built


def from_faiss(built: Any, metric: str) -> Backend:
    """The backend of a filled FAISS index."""

    def search(queries: Floats, count: int) -> tuple[Floats, Ints]:
        scores, positions = built.search(queries, count)
        scores = -scores if metric == "l2" else scores
        return np.where(positions < 0, -np.inf, scores), positions

    return search


def _chunks(gallery: Vectors, max_memory: int) -> list[slice]:
    if gallery.plain:
        return [slice(0, len(gallery))]
    return gallery.chunks(max(1, max_memory // 4 // (4 * gallery.width)))


def _merge(best: tuple[Floats, Ints] | None, new: tuple[Floats, Ints], count: int) -> tuple[Floats, Ints]:
    if best is None:
        return new
    scores, positions = np.concatenate([best[0], new[0]], axis=1), np.concatenate([best[1], new[1]], axis=1)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :count]
    return np.take_along_axis(scores, order, 1), np.take_along_axis(positions, order, 1)


def _scores(queries: torch.Tensor, rows: torch.Tensor, metric: str) -> torch.Tensor:
    products = queries @ rows.T
    if metric != "l2":
        return products
    return 2 * products - queries.square().sum(1, keepdim=True) - rows.square().sum(1)


def _training_rows(index: Any, count: int) -> Ints:
    """A seeded sample: FAISS recommends about 40 vectors per cell; its other parts need a fixed number."""
    inverted = faiss.try_extract_index_ivf(index)
    size = max(100_000, 40 * inverted.nlist if inverted else 0)
    return np.sort(np.random.default_rng(0).choice(count, min(count, size), replace=False))


def _shared_tensor(rows: Floats) -> torch.Tensor:
    """The rows as a tensor in the same memory, which is only read; PyTorch warns of arrays that are not writable."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(rows)
