"""From a network and a data set to embeddings."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from hgsl.common import ranks
from hgsl.common.device import pick_precision
from hgsl.common.errors import InputError


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
    precision: str = "float32",
    progress: bool = True,
) -> Embeddings:
    """Runs ``model`` in evaluation mode over ``dataset`` and returns its vectors as float32.

    The data set is cut into the same batches of ``batch_size`` whatever the number of processes; under a process group
    each rank computes its share of whole batches and every rank gets all vectors. Global random state is left as it
    was, and so is the model's mode.

    Args:
        model: (B, 3, H, W) -> (B, D); it stays on its device if ``device`` is None, else it is moved there.
        dataset: ``dataset[i]`` is (image tensor, int label, int id).
        batch_size: Images a forward pass.
        num_workers: Processes that load images; 0 loads in this one.
        precision: ``float32``, ``bfloat16``, ``float16`` or ``auto``: in which the network computes.
        progress: Whether to show a progress bar on stderr, if that is a terminal.

    Raises:
        InputError: The data set is empty, or the network returns no (B, D) matrix.
    """
    count = len(dataset)  # type: ignore[arg-type]
    if not count:
        raise InputError("the data set has no images: there is nothing to embed")
    if device is not None:
        model.to(device)
    place = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
    batches = [list(range(start, min(start + batch_size, count))) for start in range(0, count, batch_size)]
    share = batches[ranks.rank() :: ranks.world_size()]
    vectors: torch.Tensor | None = None
    labels, ids = torch.zeros(count, dtype=torch.int64), torch.zeros(count, dtype=torch.int64)
    with preserved_random_state(), evaluation_mode(model), torch.inference_mode():
        # A generator of its own: the loader would otherwise draw its workers' seed from the global one.
        loader = DataLoader(dataset, batch_sampler=share, num_workers=num_workers, generator=torch.Generator())
        bar = tqdm(loader, desc="embedding", unit="batch", disable=None if progress and ranks.is_main() else True)
        for rows, (images, batch_labels, batch_ids) in zip(share, bar, strict=True):
            found = forward(model, images.to(place, non_blocking=True), precision)
            if vectors is None:
                vectors = torch.zeros(count, found.shape[1])
            vectors[rows], labels[rows], ids[rows] = found, batch_labels, batch_ids
    vectors, labels, ids = _gather(vectors, count, place), _sum(labels, place), _sum(ids, place)
    return Embeddings(vectors.numpy(), labels.numpy(), ids.numpy())


def forward(model: nn.Module, images: torch.Tensor, precision: str = "float32") -> torch.Tensor:
    """Returns the (B, D) float32 vectors of a batch on the CPU, computed in ``precision``."""
    dtype = pick_precision(precision, images.device)
    with torch.autocast(images.device.type, dtype=dtype, enabled=dtype != torch.float32):
        found = model(images)
    if not isinstance(found, torch.Tensor) or found.ndim != 2:
        shape = tuple(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
        raise InputError(f"the network must return one vector an image, a (B, D) matrix; it returned {shape}")
    return found.float().cpu()


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Puts every module into evaluation mode, and each back into its own mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def preserved_random_state() -> Iterator[None]:
    """Restores the global generators of Python, NumPy and torch on leaving."""
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002


def _gather(vectors: torch.Tensor | None, count: int, place: torch.device) -> torch.Tensor:
    if not ranks.initialised():
        assert vectors is not None
        return vectors
    # A rank without a batch learns the width from the others.
    width = torch.tensor(0 if vectors is None else vectors.shape[1], device=_meeting_place(place))
    dist.all_reduce(width, op=dist.ReduceOp.MAX)
    vectors = torch.zeros(count, int(width)) if vectors is None else vectors
    # As integers: every entry is nonzero on one rank only, and the sum then keeps each bit.
    return _sum(vectors.view(torch.int32), place).view(torch.float32)


def _sum(values: torch.Tensor, place: torch.device) -> torch.Tensor:
    if not ranks.initialised():
        return values
    values = values.to(_meeting_place(place))
    dist.all_reduce(values)
    return values.cpu()


def _meeting_place(place: torch.device) -> torch.device:
    """Where the process group's tensors live: NCCL has none on the CPU."""
    return place if dist.get_backend() == "nccl" else torch.device("cpu")
