"""Process group of a run under torchrun, and the values that its processes exchange; one process needs no group."""

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
    """Joins the process group under torchrun and yields the device of this process; without torchrun yields ``device``.

    Raises:
        InputError: The device supports a single process only.
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
        # Others may be in a collective that this process never joins: without an abort NCCL would wait for it.
        if device.type == "cuda":
            dist.distributed_c10d._abort_process_group()
        raise
    else:
        dist.destroy_process_group()


def agree(loss: float, stop: int, device: torch.device) -> tuple[float, int]:
    """Returns the mean loss over all processes, and the largest signal number received by any."""
    if not ranks.is_initialized():
        return loss, stop
    rows = torch.zeros(ranks.world_size(), 2, dtype=torch.float64, device=device)
    rows[ranks.rank()] = torch.tensor([loss, stop], dtype=torch.float64)
    dist.all_reduce(rows)
    return float(rows[:, 0].mean()), int(rows[:, 1].max())


def share_buffers(*modules: nn.Module) -> None:
    """Broadcasts the buffers of the first process: the statistics of batch norms, which differ between processes.

    All processes then evaluate the model that the first one saves.
    """
    if ranks.is_initialized():
        for buffer in (buffer for module in dict.fromkeys(modules) for buffer in module.buffers()):
            dist.broadcast(buffer, 0)
