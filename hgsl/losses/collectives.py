"""Exchange of batches between processes; with one process, or none initialized, everything stays where it is."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from hgsl.common.errors import InputError
from hgsl.common.ranks import is_initialized

Group = dist.ProcessGroup | None


def rank_and_world(group: Group) -> tuple[int, int]:
    """Returns this process's rank in ``group`` and the group's size."""
    return (dist.get_rank(group), dist.get_world_size(group)) if is_initialized() else (0, 1)


def gather(value: Tensor, group: Group) -> list[Tensor]:
    """Returns every process's ``value``, which has the same shape everywhere, in rank order; without gradient."""
    if not is_initialized():
        return [value]
    found = [torch.empty_like(value) for _ in range(dist.get_world_size(group))]
    dist.all_gather(found, value.detach().contiguous(), group=group)
    return found


def gather_rows(value: Tensor, counts: list[int], group: Group) -> Tensor:
    """Returns the rows of all processes under each other; process r has ``counts[r]`` of them."""
    padding = [0, 0] * (value.ndim - 1) + [0, max(counts) - len(value)]
    parts = gather(F.pad(value.detach(), padding), group)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


def all_reduce_sum(value: Tensor, group: Group) -> Tensor:
    """Returns the sum of every process's ``value``; without gradient."""
    total = value.detach().clone()
    if is_initialized():
        dist.all_reduce(total, group=group)
    return total


def broadcast_from_main(value: Tensor, group: Group) -> Tensor:
    """Returns the ``value`` of the first process."""
    if is_initialized():
        dist.broadcast(value, group=group, group_src=0)
    return value


def agree_on_counts(count: int, problem: InputError | None, device: torch.device, group: Group) -> list[int]:
    """Returns every process's row count, or raises on all of them if one has a ``problem``, so that none waits in vain.

    Raises:
        InputError: The problem, and on the other processes the rank that has one.
    """
    counts = torch.cat(gather(torch.tensor([-1 if problem else count], device=device), group)).tolist()
    if problem:
        raise problem
    if min(counts) < 0:
        raise InputError(f"rank {counts.index(-1)} refused its batch: see the message there")
    return counts


class Exchange(torch.autograd.Function):
    """Gathers the rows of all processes, and hands on a number they share.

    Backward adds up the gradients that every process has of every row, and returns those of its own rows times the
    number of processes: DistributedDataParallel's mean then is the gradient of the joint batch. The gradient of the
    shared number is the sum. It is one function so that all processes communicate in the same order.
    """

    @staticmethod
    def forward(ctx, rows, shared, counts, group):  # type: ignore[no-untyped-def]
        ctx.counts, ctx.group = counts, group
        return gather_rows(rows, counts, group), shared.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_rows, grad_shared):  # type: ignore[no-untyped-def]
        rank, world = rank_and_world(ctx.group)
        own = shared = None
        if ctx.needs_input_grad[0]:
            start = sum(ctx.counts[:rank])
            own = world * all_reduce_sum(grad_rows, ctx.group)[start : start + ctx.counts[rank]]
        if ctx.needs_input_grad[1]:
            shared = all_reduce_sum(grad_shared, ctx.group)
        return own, shared, None, None
