"""Embeddings of a data set by a network."""

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import DataLoader, Dataset

from hgsl.common import ranks
from hgsl.common.device import check_device, dtype_name
from hgsl.common.errors import InputError
from hgsl.common.fingerprint import fingerprint
from hgsl.common.modules import evaluation_mode
from hgsl.common.precision import float32_products
from hgsl.common.progress import progress_bar
from hgsl.common.random_state import preserved_random_state
from hgsl.common.whole_numbers import check_whole_number
from hgsl.common.workers import init_worker
from hgsl.evaluation.store import EmbeddingStore


class Embeddings(NamedTuple):
    """The vectors of a data set, in its order."""

    embeddings: NDArray[np.float32]  # (N, D)
    labels: NDArray[np.int64]  # (N,)
    ids: NDArray[np.int64]  # (N,)


def embed(
    model: nn.Module,
    dataset: Dataset[Any],
    *,
    batch_size: int = 64,
    num_workers: int = 0,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
    progress: bool = True,
    store: str | os.PathLike[str] | None = None,
    identity: str = "",
) -> Embeddings:
    """Runs ``model`` in evaluation mode over ``dataset`` and returns its vectors as float32.

    The data set is cut into the same batches of ``batch_size`` whatever the number of processes; under a process group
    each rank computes its share of whole batches and every rank gets all vectors. So the vectors are the same, bit for
    bit, with any number of ranks, given the same hardware and the same number of threads per rank. The global
    random state and the model's mode are restored.

    Args:
        model: (B, 3, H, W) -> (B, D); it stays on its device if ``device`` is None, else it is moved there.
        dataset: ``dataset[i]`` is (image tensor, int label, int id).
        batch_size: Images per forward pass.
        num_workers: Processes that load images; 0 loads in this one.
        dtype: Dtype of the network's computation, by autocast.
        progress: Whether to show a progress bar on stderr, if that is a terminal.
        store: Folder to which vectors are written as they are computed (see ``store.py``); those of an earlier,
            interrupted call are reused, and the returned arrays are memory maps. Ranks must share its file system.
        identity: What determines the vectors besides the weights, the number of images, the batches and the dtype,
            such as the hash of a split and the image size; a store of another identity is refused.

    Raises:
        InputError: The data set is empty or has elements of another form, the network returns no (B, D) matrix, or
            the store holds something else.
    """
    check_whole_number("batch_size", batch_size, 1)
    check_whole_number("num_workers", num_workers, 0)
    count = len(dataset)  # type: ignore[arg-type]
    if not count:
        raise InputError("the data set has no images: there is nothing to embed")
    if device is not None:
        model.to(check_device(device))
    device = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
    batches = [list(range(start, min(start + batch_size, count))) for start in range(0, count, batch_size)]
    sink: EmbeddingStore | _Memory
    if store is None:
        sink = _Memory(count, len(batches), device)
    else:
        weights = fingerprint(model, f"{batch_size} {dtype_name(dtype)}")[:16]
        sink = EmbeddingStore(store, count, len(batches), f"{weights} {identity}")
    numbers = sink.pending()[ranks.rank() :: ranks.world_size()]
    opened = False
    with preserved_random_state(), evaluation_mode(model), torch.inference_mode():
        share = [batches[number] for number in numbers]
        # Without this generator the loader draws its workers' seed from the global one.
        loader = DataLoader(
            dataset,
            batch_sampler=share,
            num_workers=min(num_workers, len(share)),
            worker_init_fn=init_worker,
            generator=torch.Generator(),
        )
        bar = progress_bar(loader, shown=progress and ranks.is_main(), desc="embedding", unit="batch")
        for number, rows, batch in zip(numbers, share, bar, strict=True):
            images, labels, ids = _checked(batch)
            vectors = forward(model, images.to(device, non_blocking=True), dtype)
            if not opened:
                sink.open(_common_width(vectors.shape[1], device))
                opened = True
            sink.write(number, rows, (vectors, labels, ids))
    if not opened:  # a rank without a batch gets the width from the others
        sink.open(_common_width(0, device))
    return Embeddings(*sink.finish())


def forward(model: nn.Module, images: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Returns the (B, D) float32 vectors of a batch on the CPU, computed in ``dtype``; float32 is IEEE arithmetic."""
    with float32_products(), torch.autocast(images.device.type, dtype=dtype, enabled=dtype != torch.float32):
        vectors = model(images)
    if not isinstance(vectors, torch.Tensor) or vectors.ndim != 2:
        shape = tuple(vectors.shape) if isinstance(vectors, torch.Tensor) else type(vectors).__name__
        raise InputError(f"the network must return one vector per image, a (B, D) matrix; it returned {shape}")
    return vectors.float().cpu()


def _checked(batch: Any) -> Sequence[torch.Tensor]:
    """Refuses a batch of elements of another form, such as (image, label) without an id."""
    parts = list(batch) if isinstance(batch, tuple | list) else [batch]
    integers = [part for part in parts[1:] if isinstance(part, torch.Tensor) and not part.is_floating_point()]
    if len(parts) != 3 or len(integers) != 2 or not isinstance(parts[0], torch.Tensor):
        names = ", ".join(str(part.dtype) if isinstance(part, torch.Tensor) else type(part).__name__ for part in parts)
        raise InputError(
            f"the data set must return (image tensor, label, id), with two integers, for each image; its batches hold "
            f"({names})"
        )
    return parts


class _Memory:
    """An ``EmbeddingStore`` in memory: ranks exchange their parts at the end."""

    def __init__(self, count: int, batches: int, device: torch.device) -> None:
        self.count, self.batches, self.device = count, batches, device

    def pending(self) -> list[int]:
        return list(range(self.batches))

    def open(self, width: int) -> None:
        shapes = {torch.float32: (self.count, width), torch.int64: (self.count,)}
        self.arrays = [torch.zeros(shapes[dtype], dtype=dtype) for dtype in (torch.float32, torch.int64, torch.int64)]

    def write(self, batch: int, rows: Sequence[int], values: Sequence[torch.Tensor]) -> None:
        for array, tensor in zip(self.arrays, values, strict=True):
            array[rows] = tensor

    def finish(self) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]:
        # As integers: each row is nonzero on one rank only, and so the sum keeps every bit.
        vectors, labels, ids = self.arrays
        bits, labels, ids = (
            ranks.all_reduce(array, device=self.device) for array in (vectors.view(torch.int32), labels, ids)
        )
        return bits.view(torch.float32).numpy(), labels.numpy(), ids.numpy()


def _common_width(width: int, device: torch.device) -> int:
    return int(ranks.all_reduce(torch.tensor(width), dist.ReduceOp.MAX, device=device))
