"""Exchange of tensors between processes; with one process, or none initialized, every function returns its input."""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from hgsl.common.autograd import refuse_second_derivative
from hgsl.common.errors import InputError
from hgsl.common.ranks import Group, is_initialized, rank, world_size


def rank_and_world(group: Group = None) -> tuple[int, int]:
    """Returns this process's rank in ``group`` and the group's size."""
    return rank(group), world_size(group)


def gather(value: Tensor, group: Group = None) -> list[Tensor]:
    """Returns every process's ``value``, which has the same shape everywhere, in rank order; without gradient."""
    if not is_initialized():
        return [value]
    parts = [torch.empty_like(value) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, value.detach().contiguous(), group=group)
    return parts


def gather_rows(rows: Tensor, counts: list[int] | None = None, group: Group = None) -> Tensor:
    """Concatenates the ``rows`` of all processes, of which rank r has ``counts[r]`` (None: all the same number).

    Without gradient.
    """
    if counts is None:
        return torch.cat(gather(rows, group))
    padding = [0, 0] * (rows.ndim - 1) + [0, max(counts) - len(rows)]
    parts = gather(F.pad(rows.detach(), padding), group)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


def gather_with_gradient(rows: Tensor) -> Tensor:
    """Concatenates the ``rows`` of all processes, each of which has the same number, for a loss over the joint batch.

    Every process computes the same loss over all rows. The gradient of its own rows is the sum of every process's, so
    that the mean which DistributedDataParallel takes is the gradient of the joint batch.
    """
    gathered, _ = GatherRows.apply(rows, None, [len(rows)] * rank_and_world()[1], None, 1)
    return gathered


def all_reduce_sum(value: Tensor, group: Group = None) -> Tensor:
    """Returns the sum of every process's ``value``; without gradient."""
    total = value.detach().clone()
    if is_initialized():
        dist.all_reduce(total, group=group)
    return total


def broadcast_from_main(value: Tensor, group: Group = None) -> Tensor:
    """Overwrites ``value`` with that of the group's first process, and returns it."""
    if is_initialized():
        dist.broadcast(value, group=group, group_src=0)
    return value


def agree_on_counts(count: int, problem: InputError | None, device: torch.device, group: Group = None) -> list[int]:
    """Returns every process's ``count``, or raises on all of them if one has a ``problem``, so that none waits forever.

    Raises:
        InputError: The problem, and on the other processes the rank that has one.
    """
    counts = torch.cat(gather(torch.tensor([-1 if problem else count], device=device), group)).tolist()
    if problem:
        raise problem
    if min(counts) < 0:
        raise InputError(f"rank {counts.index(-1)} refused its input: see its message")
    return counts


class GatherRows(torch.autograd.Function):
    """Gathers the rows of all processes, and passes on a number that they share, or None.

    Backward sums the gradients that every process has of every row, and returns those of the process's own rows times
    ``factor``. The gradient of the shared number is the sum. It is one function so that all processes communicate in
    the same order.
    """

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, shared: Tensor | None, counts: list[int], group: Group, factor: int
    ) -> tuple[Tensor, Tensor | None]:
        ctx.counts, ctx.group, ctx.factor = counts, group, factor
        return gather_rows(rows, counts, group), None if shared is None else shared.clone()

    @staticmethod
    def backward(ctx: Any, grad_rows: Tensor, grad_shared: Tensor | None) -> tuple[Tensor | None, ...]:
        refuse_second_derivative("a loss over several processes", "compute it in one process")
        rank, _ = rank_and_world(ctx.group)
        local = shared = None
        if ctx.needs_input_grad[0]:
            start = sum(ctx.counts[:rank])
            local = ctx.factor * all_reduce_sum(grad_rows, ctx.group)[start : start + ctx.counts[rank]]
        if ctx.needs_input_grad[1]:
            assert grad_shared is not None
            shared = all_reduce_sum(grad_shared, ctx.group)
        return local, shared, None, None, None
