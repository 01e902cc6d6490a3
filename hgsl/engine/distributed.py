"""Process group of a run under torchrun, and what its processes exchange; a single process needs no group."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import nn

from hgsl.common import ranks
from hgsl.common.errors import InputError


@contextmanager
def process_group(device: torch.device) -> Iterator[torch.device]:
    """Joins the processes that torchrun has started and yields the device of this one; without torchrun does nothing.

    Raises:
        InputError: The device serves a single process.
    """
    if ranks.launched_world_size() == 1:
        yield device
        return
    if device.type == "mps":
        raise InputError("run.device mps serves one process: start without torchrun, or use cuda or cpu")
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield device
    except BaseException:
        # Others may be inside a collective that this process never joins: NCCL would wait for it before it ends.
        if device.type == "cuda":
            dist.distributed_c10d._abort_process_group()
        raise
    else:
        dist.destroy_process_group()


def agree(loss: float, stop: int, device: torch.device) -> tuple[float, int]:
    """Returns the mean of every process's loss, and the largest signal number that any of them received."""
    if not ranks.is_initialized():
        return loss, stop
    rows = torch.zeros(ranks.world_size(), 2, dtype=torch.float64, device=device)
    rows[ranks.rank()] = torch.tensor([loss, stop], dtype=torch.float64)
    dist.all_reduce(rows)
    return float(rows[:, 0].mean()), int(rows[:, 1].max())


def share_buffers(*modules: nn.Module) -> None:
    """Gives every process the buffers of the first: the statistics of batch norms, which each has from its own images.

    What is evaluated by all is then what the first one saves.
    """
    if ranks.is_initialized():
        for buffer in (buffer for module in dict.fromkeys(modules) for buffer in module.buffers()):
            dist.broadcast(buffer, 0)
