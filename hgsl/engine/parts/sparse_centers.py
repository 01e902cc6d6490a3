"""Class centers with sparse gradients: when they are used, and their optimizer beside that of all other parameters."""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

from torch import nn, optim
from torch.optim import Optimizer

from hgsl.common import ranks
from hgsl.common.errors import InputError
from hgsl.config import LossConfig, OptimConfig
from hgsl.engine.parts.optim import create_optimizer
from hgsl.losses import HardGlobalSoftminLoss, attach_optimizer

SPARSE_FROM = 100_000  # classes; below, a dense gradient and its moments take less than 2 GB at 1,024 dimensions


def use_sparse_centers(settings: LossConfig, num_classes: int) -> bool:
    """Whether the centers get a sparse gradient: as ``loss.sparse_centers`` says, or else with many classes.

    Raises:
        InputError: It is asked for with several processes that each hold all centers.
    """
    replicated = ranks.world_size() > 1 and not settings.sharded
    if settings.sparse_centers is None:
        return num_classes >= SPARSE_FROM and not replicated
    if settings.sparse_centers and replicated:
        raise InputError(
            "loss.sparse_centers true: processes that each hold all centers cannot average sparse gradients; "
            "set loss.sharded true, or loss.sparse_centers false"
        )
    return settings.sparse_centers


def build_optimizer(groups: list[dict[str, Any]], settings: OptimConfig, objective: nn.Module) -> Optimizer:
    """Returns the optimizer of all ``groups``; centers with a sparse gradient get SGD, which keeps no state of them.

    Args:
        groups: the parameter groups, that of the centers among them.
        settings: the optimizer of all other groups.
        objective: holds the loss.
    """
    sparse = [m for m in objective.modules() if isinstance(m, HardGlobalSoftminLoss) and m.sparse_grad]
    if not sparse:
        return create_optimizer(groups, settings)
    (loss_fn,) = sparse
    holds_centers = [any(parameter is loss_fn.centers for parameter in group["params"]) for group in groups]
    others = [group for group, holds in zip(groups, holds_centers, strict=True) if not holds]
    centers = optim.SGD([group for group, holds in zip(groups, holds_centers, strict=True) if holds])
    attach_optimizer(loss_fn, centers)
    return JointOptimizer(create_optimizer(others, settings), centers) if others else centers


class JointOptimizer(Optimizer):
    """Several optimizers that are stepped, scheduled, saved and loaded as one; they share their parameter groups."""

    def __init__(self, *parts: Optimizer) -> None:
        self.parts = parts
        super().__init__([group for part in parts for group in part.param_groups], {})

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Steps every part."""
        loss = closure() if closure else None
        for part in self.parts:
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Returns the state of all parts, parameters numbered through all groups as in any optimizer."""
        self.state = defaultdict(dict, {key: value for part in self.parts for key, value in part.state.items()})
        return super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Gives every part its share of what :meth:`state_dict` returned."""
        first_group = 0
        for part in self.parts:
            groups = state_dict["param_groups"][first_group : first_group + len(part.param_groups)]
            indices = {index for group in groups for index in group["params"]}
            state = {index: value for index, value in state_dict["state"].items() if index in indices}
            part.load_state_dict({"state": state, "param_groups": groups})
            first_group += len(groups)
        self.param_groups = [group for part in self.parts for group in part.param_groups]
