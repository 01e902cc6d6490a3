"""Process group of a run under torchrun, and the values that its processes exchange; one process needs no group."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hgsl.common import ranks
from hgsl.common.errors import InputError

LOST_CONNECTION = "Connection (closed|reset) by peer|Connection was likely closed|Broken pipe|remote process exited"


@contextmanager
def process_group(device: torch.device) -> Iterator[torch.device]:
    """Joins the process group under torchrun and yields the device of this process; without torchrun yields ``device``.

    Raises:
        InputError: The device supports a single process only, or another process has ended, whose message tells why.
    """
    if ranks.launched_world_size() == 1:
        yield device
        return
    if device.type == "mps":
        raise InputError("run.device mps serves one process: start without torchrun, or use cuda or cpu")
    backend = "gloo"
    if device.type == "cuda":
        device, backend = _device_and_backend(int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group(backend)
    try:
        yield device
    except BaseException as error:
        # Others may be in a collective that this process never joins: without an abort NCCL would wait for it.
        if backend == "nccl":
            dist.distributed_c10d._abort_process_group()
        if is_lost_connection(error):
            raise InputError("another process of this run has ended: its message tells why") from None
        raise
    else:
        dist.destroy_process_group()


def is_lost_connection(error: BaseException) -> bool:
    """Whether a collective has failed because another process has ended; gloo and NCCL have no type for that."""
    return isinstance(error, RuntimeError) and re.search(LOST_CONNECTION, str(error)) is not None


def _device_and_backend(local_rank: int) -> tuple[torch.device, str]:
    """The GPU of a process, and the backend: gloo where processes share a GPU, which NCCL refuses."""
    gpus = torch.cuda.device_count()
    shared = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > gpus
    return torch.device("cuda", local_rank % gpus), "gloo" if shared else "nccl"


def all_true(flag: Tensor) -> bool:
    """Returns whether the boolean scalar ``flag`` is true on every process, which waits for the device."""
    if not ranks.is_initialized():
        return bool(flag)
    lowest = flag.to(torch.int32)
    dist.all_reduce(lowest, op=dist.ReduceOp.MIN)
    return bool(lowest)


def mean_and_largest(values: Tensor, number: int) -> tuple[Tensor, int]:
    """Returns the means of ``values`` ``(n,)`` over all processes, and the largest ``number`` of any."""
    if not ranks.is_initialized():
        return values, number
    rows = torch.zeros(ranks.world_size(), len(values) + 1, dtype=values.dtype, device=values.device)
    rows[ranks.rank()] = torch.cat([values, values.new_full((1,), number)])
    dist.all_reduce(rows)
    return rows[:, :-1].mean(dim=0), int(rows[:, -1].max())


def share_buffers(*modules: nn.Module) -> None:
    """Broadcasts the buffers of the first process: the statistics of batch norms, which differ between processes.

    All processes then evaluate the model that the first one saves.
    """
    if ranks.is_initialized():
        for buffer in (buffer for module in dict.fromkeys(modules) for buffer in module.buffers()):
            dist.broadcast(buffer, 0)
