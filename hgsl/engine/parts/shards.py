"""Gradient norm and optimizer state of class centers that are sharded over processes or have sparse gradients."""

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from hgsl.common import ranks
from hgsl.losses import ShardedHardGlobalSoftminLoss

KERNELS = ("foreach", "fused", "capturable")  # settings of an optimizer that choose an implementation


def sharded_loss(objective: nn.Module) -> ShardedHardGlobalSoftminLoss | None:
    """The loss in ``objective`` whose centers are sharded over processes, or None."""
    return next((module for module in objective.modules() if isinstance(module, ShardedHardGlobalSoftminLoss)), None)


def clip_gradients(optimizer: Optimizer, limit: float | None, loss: ShardedHardGlobalSoftminLoss | None) -> Tensor:
    """Scales the gradients to a norm of at most ``limit`` over all shards, and returns the norm before, a scalar.

    Each process has its own shard of the centers, and the same gradients of everything else. With local
    norms, the processes would scale the latter differently, and the replicas of the network would diverge.
    """
    parameters = [p for p in _parameters(optimizer) if p.grad is not None]
    norm = _norm([p for p in parameters if loss is None or p is not loss.centers])
    if loss is not None:
        squares = _norm([p for p in parameters if p is loss.centers]).to(loss.centers.device) ** 2
        if ranks.is_initialized():
            dist.all_reduce(squares)
        norm = (norm**2 + squares).sqrt()
    limit = math.inf if limit is None else limit
    nn.utils.clip_grads_with_norm_([p for p in parameters if not _gradient(p).is_sparse], limit, norm)
    for parameter in parameters:
        if _gradient(parameter).is_sparse:
            values = _values(parameter)
            values.mul_((limit / (norm.to(values.device) + 1e-6)).clamp(max=1.0))
    return norm


def _norm(parameters: list[nn.Parameter]) -> Tensor:
    return nn.utils.get_total_norm([_values(p) for p in parameters])


def _values(parameter: nn.Parameter) -> Tensor:
    """The gradient of ``parameter``, or the rows ``(n, D)`` of a sparse one, which is coalesced."""
    gradient = _gradient(parameter)
    if gradient.is_sparse:
        gradient = parameter.grad = gradient.coalesce()
        return gradient._values()
    return gradient


def _gradient(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def optimizer_state(optimizer: Optimizer, loss: ShardedHardGlobalSoftminLoss | None) -> dict[str, Any]:
    """The optimizer's state with the moments of all centers; collective: every process must call it."""
    state = optimizer.state_dict()
    state["param_groups"] = [_without_tensors(group) for group in state["param_groups"]]
    if loss is None:
        return state
    index = _index(optimizer, loss.centers)
    local = state["state"].get(index, {})  # empty on a process without centers
    names = [name for name, value in local.items() if isinstance(value, Tensor) and value.shape == loss.centers.shape]
    if ranks.is_initialized():
        dist.broadcast_object_list(from_main := [names])
        [names] = from_main
    moments = {name: loss.all_rows(local.get(name, torch.zeros_like(loss.centers))) for name in names}
    if not local and not moments:
        return state
    return {**state, "state": {**state["state"], index: {**local, **moments}}}


def load_optimizer_state(
    optimizer: Optimizer, state: dict[str, Any], loss: ShardedHardGlobalSoftminLoss | None
) -> None:
    """Loads the state of :func:`optimizer_state`; of the moments, this process's rows, for any number of processes."""
    groups = zip(state["param_groups"], optimizer.param_groups, strict=False)  # the optimizer reports another number
    state = {**state, "param_groups": [_with_kernels_of(current, saved) for saved, current in groups]}
    if loss is not None and (index := _index(optimizer, loss.centers)) in state["state"]:
        whole = state["state"][index]
        local = {
            name: loss.local_rows(value) if value.ndim else value for name, value in whole.items() if value is not None
        }
        state = {**state, "state": {**state["state"], index: local}}
    optimizer.load_state_dict(state)
    for part in getattr(optimizer, "parts", [optimizer]):
        _restore_memory_formats(part)


def _restore_memory_formats(optimizer: Optimizer) -> None:
    """Gives moments the memory format of their parameters, which a file does not keep and fused kernels rely on."""
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                values[name] = torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)


def _without_tensors(group: dict[str, Any]) -> dict[str, Any]:
    """The settings of a parameter group with numbers in place of scalars on a device."""
    return {name: float(value) if isinstance(value, Tensor) else value for name, value in group.items()}


def _with_kernels_of(current: dict[str, Any], saved: dict[str, Any]) -> dict[str, Any]:
    """The ``saved`` settings of a group with the implementation of the ``current`` one, which a resumed run may change.

    A state is saved on one device and may be loaded on another.
    """
    return {**saved, **{name: current[name] for name in KERNELS if name in current}}


def _index(optimizer: Optimizer, parameter: nn.Parameter) -> int:
    """The key of ``parameter`` in a state dict: its number over all groups."""
    return next(index for index, other in enumerate(_parameters(optimizer)) if other is parameter)


def _parameters(optimizer: Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
