"""What centers that are divided among processes ask of the loop: the norm of the whole gradient, and a whole state."""

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from hgsl.common import ranks
from hgsl.losses import ShardedHardGlobalSoftminLoss


def sharded_loss(objective: nn.Module) -> ShardedHardGlobalSoftminLoss | None:
    """The loss in ``objective`` whose centers are divided among processes, or None."""
    return next((module for module in objective.modules() if isinstance(module, ShardedHardGlobalSoftminLoss)), None)


def clip_gradients(optimizer: Optimizer, limit: float | None, loss: ShardedHardGlobalSoftminLoss | None) -> float:
    """Scales the gradients to a norm of at most ``limit``, and returns what it was: over the shards of all processes.

    Each process has its own share of the centers, and the same gradients of all else; norms of their own would scale
    these differently, and the replicas of the network would part.
    """
    parameters = _parameters(optimizer)
    norm = _norm([p for p in parameters if loss is None or p is not loss.centers])
    if loss is not None:
        squares = _norm([loss.centers]).to(loss.centers.device) ** 2
        if ranks.is_initialized():
            dist.all_reduce(squares)
        norm = (norm**2 + squares).sqrt()
    nn.utils.clip_grads_with_norm_(parameters, math.inf if limit is None else limit, norm)
    return float(norm)


def _norm(parameters: list[nn.Parameter]) -> Tensor:
    return nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])


def optimizer_state(optimizer: Optimizer, loss: ShardedHardGlobalSoftminLoss | None) -> dict[str, Any]:
    """The optimizer's state, with its moments of all centers on the first process; every process must call it."""
    state = optimizer.state_dict()
    if loss is None:
        return state
    index = _index(optimizer, loss.centers)
    own = state["state"].get(index, {})  # nothing on a process without centers
    names = [name for name, value in own.items() if isinstance(value, Tensor) and value.shape == loss.centers.shape]
    if ranks.is_initialized():
        dist.broadcast_object_list(told := [names])
        [names] = told
    moments = {name: loss.all_rows(own.get(name, torch.zeros_like(loss.centers))) for name in names}
    return {**state, "state": {**state["state"], index: {**own, **moments}}}


def load_optimizer_state(
    optimizer: Optimizer, state: dict[str, Any], loss: ShardedHardGlobalSoftminLoss | None
) -> None:
    """Takes the state of :func:`optimizer_state`, and of the moments this process's rows, however many there are."""
    if loss is not None and (index := _index(optimizer, loss.centers)) in state["state"]:
        whole = state["state"][index]
        own = {
            name: loss.local_rows(value) if value.ndim else value for name, value in whole.items() if value is not None
        }
        state = {**state, "state": {**state["state"], index: own}}
    optimizer.load_state_dict(state)


def _index(optimizer: Optimizer, parameter: nn.Parameter) -> int:
    """Where a state dict has what belongs to ``parameter``: parameters are numbered through all groups."""
    return next(index for index, other in enumerate(_parameters(optimizer)) if other is parameter)


def _parameters(optimizer: Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
