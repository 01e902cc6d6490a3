"""k-NN backends: FAISS over all vectors, torch on any device over all vectors, or an approximate FAISS index.

A backend is called with queries (B, D) and a count and returns scores (B, count), larger is nearer, best first, and
positions (B, count) in the gallery; if there are fewer, it pads with score -inf and position -1. Its scores have
float32 rounding errors and its order of equal scores is arbitrary: ``knn.k_nearest`` corrects both.
"""

import warnings
from collections.abc import Callable
from threading import Lock
from typing import Any

import faiss
import numpy as np
import torch

from hgsl.common.errors import InputError
from hgsl.common.faiss_factory import check_factory, metric_of, reason_of, set_parameters
from hgsl.common.precision import float32_products
from hgsl.common.threads import map_ahead
from hgsl.evaluation.knn.vectors import Floats, Ints, Vectors

Backend = Callable[[Floats, int], tuple[Floats, Ints]]

CPU_BLOCK = 256  # queries whose scores are held at a time on a CPU
MAX_SCORES = 1 << 28  # scores of one top k: more at a time are no faster
READERS = 4  # threads that convert rows to float32 while others are copied to a device
CONCURRENCY = 3  # blocks of queries: one on the device, one waiting for it, one put in order by the host


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
    """Exact search of the gallery by torch on ``device``, where it stays if it fits in half of the memory.

    The memory is ``max_memory``, or half of what is free on a GPU where that is more. Several threads may search at a
    time: the device computes for one of them while others wait for their results or use them.
    """
    on_cpu = device.type == "cpu"
    memory = max(max_memory, _free_memory(device) // 2)
    resident = (on_cpu and gallery.plain) or 4 * len(gallery) * gallery.width <= memory // 2
    whole = [_all_rows(gallery, device)] if resident else []
    launching = Lock()

    def search(queries: Floats, count: int) -> tuple[Floats, Ints]:
        block_size = CPU_BLOCK if on_cpu and resident else len(queries)
        with launching, float32_products():  # which sets the precision of the whole process
            blocks = _shared_tensor(queries).to(device).split(block_size)
            scores, positions = zip(*[search_block(block, count) for block in blocks], strict=True)
            all_scores, all_positions = torch.cat(scores), torch.cat(positions)
        return all_scores.cpu().numpy(), all_positions.cpu().numpy()

    def search_block(block: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        # The (B, chunk) matrix of scores and its sort have the other half of the memory.
        size = max(count, min(memory // 32, MAX_SCORES) // len(block))
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


def concurrency(device: torch.device) -> int:
    """Returns how many blocks of queries are best in work at a time in an exact search on ``device``."""
    return 1 if device.type == "cpu" else CONCURRENCY


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


def _free_memory(device: torch.device) -> int:
    """Bytes that a GPU has left, those that PyTorch keeps for its next tensors included; 0 for other devices."""
    if device.type != "cuda":
        return 0
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + kept


def _all_rows(gallery: Vectors, device: torch.device) -> torch.Tensor:
    """All rows as one matrix on ``device``, on a CPU a view where possible: one top k of all scores is the fastest."""
    if device.type == "cpu" and gallery.plain:
        return _shared_tensor(gallery.rows(slice(0, len(gallery))))
    matrix = torch.empty(len(gallery), gallery.width, device=device)
    chunks = gallery.chunks()
    for chunk, rows in zip(chunks, map_ahead(gallery.rows, chunks, min(READERS, gallery.readers)), strict=True):
        matrix[chunk].copy_(_shared_tensor(rows))
    return matrix


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
