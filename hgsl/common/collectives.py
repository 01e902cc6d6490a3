"""Collective operations on tensors; without a process group, or with one process, each returns its input."""

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
    local = value.detach().contiguous()
    if dist.get_backend(group) == "gloo":
        local = local.cpu()  # gloo gathers there only
    parts = [torch.empty_like(local) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, local, group=group)
    return [part.to(value.device) for part in parts]


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
    """Concatenates the ``rows`` of all processes, the same number in each, for a loss over the joint batch.

    Every process computes the same loss over all rows. Backward sums the gradients of a row over all processes, so that
    the mean over processes in DistributedDataParallel is the gradient of the joint batch.
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
    """Returns every process's ``count``; if one has a ``problem``, all raise, so that none blocks in a collective.

    Raises:
        InputError: ``problem``, or on a process without one an error that names the rank with a problem.
    """
    counts = torch.cat(gather(torch.tensor([-1 if problem else count], device=device), group)).tolist()
    if problem:
        raise problem
    if min(counts) < 0:
        raise InputError(f"the input of rank {counts.index(-1)} is invalid: see the error of that process")
    return counts


class GatherRows(torch.autograd.Function):
    """Concatenates the rows of all processes; a scalar ``shared``, equal in all of them or None, is passed through.

    Backward sums the gradients of rows and scalar over all processes, and returns those of the local rows, times
    ``factor``, and of the scalar. Both are in one function so that all processes communicate in the same order.
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
        grad_local_rows = grad_scalar = None
        if ctx.needs_input_grad[0]:
            first_row = sum(ctx.counts[:rank])
            grad_all_rows = all_reduce_sum(grad_rows, ctx.group)
            grad_local_rows = ctx.factor * grad_all_rows[first_row : first_row + ctx.counts[rank]]
        if ctx.needs_input_grad[1]:
            assert grad_shared is not None
            grad_scalar = all_reduce_sum(grad_shared, ctx.group)
        return grad_local_rows, grad_scalar, None, None, None
