"""Rank, world size and collectives of the process group; without a group, rank 0 and world size 1."""

import os
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from hgsl.common.progress import is_quiet

Group = dist.ProcessGroup | None  # None is the default group


def is_initialized() -> bool:
    """Whether a process group exists."""
    return dist.is_available() and dist.is_initialized()


def rank(group: Group = None) -> int:
    """Returns the rank of this process."""
    return dist.get_rank(group) if is_initialized() else 0


def world_size(group: Group = None) -> int:
    """Returns the number of processes."""
    return dist.get_world_size(group) if is_initialized() else 1


def launched_world_size() -> int:
    """Returns the number of processes that torchrun starts, even before a group exists; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this process has rank 0: the one that writes files and prints."""
    return rank() == 0


def print_main(text: str, *, result: bool = False) -> None:
    """Prints on rank 0 only; in quiet mode only a ``result``."""
    if is_main() and (result or not is_quiet()):
        print(text, flush=True)


def barrier() -> None:
    """Waits until every process has reached this line."""
    if is_initialized():
        dist.barrier()


def all_reduce(value: Tensor, op: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM, *, device: torch.device) -> Tensor:
    """Returns the reduction of every process's ``value``, on the device of ``value``, which may be changed in place.

    Args:
        value: Of the same shape and dtype in every process.
        op: Sum, maximum, ...
        device: The device of this process, which NCCL needs; gloo reduces on the CPU.
    """
    if not is_initialized():
        return value
    reduced = value.to(device if dist.get_backend() == "nccl" else torch.device("cpu"))
    dist.all_reduce(reduced, op=op)
    return reduced.to(value.device)


def all_gather_object(value: Any) -> list[Any]:
    """Returns every process's small ``value``, in rank order."""
    if not is_initialized():
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values
