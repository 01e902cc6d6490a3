"""Parameter groups, optimizer and learning-rate schedule."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from timm.optim import create_optimizer_v2, param_groups_layer_decay
from torch import nn, optim
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from hgsl.common.errors import InputError, unknown
from hgsl.config import OptimConfig
from hgsl.losses import HardGlobalSoftminLoss, attach_optimizer
from hgsl.models import Embedder

Groups = list[dict[str, Any]]


def parameter_groups(model: Embedder, loss_fn: nn.Module, settings: OptimConfig) -> Groups:
    """Returns the groups ``backbone``, ``projection``, ``teacher_projection``, ``centers`` and ``scale``.

    Each has its own learning rate, the projection to the embeddings of a teacher that of the model's projection.
    Centers and scale are parameters of the loss and have no weight decay: decay would counteract their normalization,
    and drive the scale toward zero. Frozen parameters and empty groups are left out.
    """
    head = [*model.pooling.parameters(), *model.projection.parameters()]
    distillation = getattr(loss_fn, "distillation", None)
    to_teacher = [] if distillation is None else list(distillation.parameters())
    others = [value for value in loss_fn.parameters() if all(value is not weight for weight in to_teacher)]
    centers = [value for value in others if value.ndim >= 2]  # whatever their names
    scale = [value for value in others if value.ndim < 2]
    groups = [
        *_backbone_groups(model.backbone, settings),
        {"name": "projection", "params": _trainable(head), "lr": settings.projection_lr},
        {"name": "teacher_projection", "params": to_teacher, "lr": settings.projection_lr},
        {"name": "centers", "params": _trainable(centers), "lr": settings.centers_lr, "weight_decay": 0.0},
        {"name": "scale", "params": _trainable(scale), "lr": settings.scale_lr, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _backbone_groups(backbone: nn.Module, settings: OptimConfig) -> Groups:
    """One group, or with ``layer_decay`` one per layer, whose rate decreases by this factor from last to first.

    The groups per layer are timm's, which exclude biases and norms from weight decay.
    """
    if settings.layer_decay is None:
        return [{"name": "backbone", "params": _trainable(backbone.parameters()), "lr": settings.lr}]
    layers = param_groups_layer_decay(backbone, settings.weight_decay, layer_decay=settings.layer_decay)
    return [
        {
            "name": f"backbone/{number}",
            "params": layer["params"],
            "lr": settings.lr * layer["lr_scale"],
            "weight_decay": layer["weight_decay"],
        }
        for number, layer in enumerate(layers)
    ]


def create_optimizer(groups: Groups, settings: OptimConfig) -> optim.Optimizer:
    """Returns the optimizer named ``settings.name``.

    Raises:
        InputError: There is nothing to train.
    """
    if not groups:
        raise InputError(
            "nothing is left to train: the backbone is frozen, there is no projection and the loss has no parameters; "
            "set model.embedding_size, another model.freeze than 'backbone', or a loss with class centers"
        )
    if settings.name in OPTIMIZERS:
        return OPTIMIZERS[settings.name](groups, settings)
    if settings.name in TIMM_OPTIMIZERS:
        return _timm(groups, settings)
    raise unknown("optim.name", settings.name, [*OPTIMIZERS, *TIMM_OPTIMIZERS])


def build_optimizer(groups: Groups, settings: OptimConfig, objective: nn.Module) -> Optimizer:
    """Returns the optimizer of all ``groups``; centers with a sparse gradient get SGD without state.

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


def create_schedule(optimizer: optim.Optimizer, settings: OptimConfig, epochs: int, steps_per_epoch: int) -> LambdaLR:
    """Returns the schedule that multiplies every group's rate by the same factor of the step."""
    return LambdaLR(optimizer, learning_rate_factor(settings, epochs, steps_per_epoch))


def learning_rate_factor(settings: OptimConfig, epochs: int, steps_per_epoch: int) -> Callable[[int], float]:
    """Returns step -> factor in (0, 1]: linear over ``warmup * total`` steps, then by ``settings.schedule``.

    Raises:
        InputError: The schedule is unknown.
    """
    if settings.schedule not in SCHEDULES:
        raise unknown("optim.schedule", settings.schedule, SCHEDULES)
    schedule = SCHEDULES[settings.schedule]
    total = max(1, epochs * steps_per_epoch)
    warmup = round(settings.warmup * total)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return schedule(settings, min(1.0, (step - warmup) / max(1, total - warmup)), step / max(1, steps_per_epoch))

    return factor


def _adamw(groups: Groups, settings: OptimConfig) -> optim.Optimizer:
    return optim.AdamW(groups, lr=settings.lr, weight_decay=settings.weight_decay, fused=_is_fused(groups, settings))


def _sgd(groups: Groups, settings: OptimConfig) -> optim.Optimizer:
    momentum = 0.9 if settings.momentum is None else settings.momentum
    optimizer = optim.SGD(
        groups,
        settings.lr,
        momentum,
        weight_decay=settings.weight_decay,
        nesterov=settings.nesterov,
        fused=_is_fused(groups, settings),
    )
    if _is_fused(groups, settings) and momentum:
        # The first fused step allocates the buffers unset, and would leave them so if it were skipped.
        for parameter in (parameter for group in optimizer.param_groups for parameter in group["params"]):
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def _is_fused(groups: Groups, settings: OptimConfig) -> bool | None:
    """Returns True for fused kernels, or None for PyTorch's choice among the others."""
    on_gpu = all(parameter.is_cuda for group in groups for parameter in group["params"])
    return (on_gpu if settings.fused is None else settings.fused) or None


def skips_on_device(optimizer: Optimizer) -> bool:
    """Whether every part of ``optimizer`` skips a step by its ``found_inf``, which only fused ones know."""
    return all(group.get("fused") for group in optimizer.param_groups)


def _timm(groups: Groups, settings: OptimConfig) -> optim.Optimizer:
    """An optimizer of timm; its groups keep their rates and weight decays, which timm would set anew for a module."""
    return create_optimizer_v2(groups, settings.name, lr=settings.lr, weight_decay=settings.weight_decay)


def _cosine(settings: OptimConfig, progress: float, epoch: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * progress))


def _step(settings: OptimConfig, progress: float, epoch: float) -> float:
    return settings.step_factor ** sum(epoch >= drop for drop in settings.step_epochs)


def _constant(settings: OptimConfig, progress: float, epoch: float) -> float:
    return 1.0


# Name in the config -> function (parameter groups, settings) -> optimizer.
OPTIMIZERS: dict[str, Callable[[Groups, OptimConfig], optim.Optimizer]] = {"adamw": _adamw, "sgd": _sgd}
# Optimizers of timm by its names: those whose update needs the gradient alone, keeps the rate and the weight decay of
# each group, and has a state of tensors and numbers. timm's others need more: adahessian a second derivative, bnb and
# fused ones a CUDA package, kron a random state of its own, muon matrices; madgrad moves parameters at a rate of 0.
TIMM_OPTIMIZERS = (
    "adabelief",
    "adafactor",
    "adam",
    "adamax",
    "adamp",
    "adan",
    "adopt",
    "lamb",
    "laprop",
    "lars",
    "lion",
    "mars",
    "nadam",
    "nadamw",
    "novograd",
    "radam",
    "rmsprop",
    "sgdp",
)
# Name in the config -> (settings, progress from 0 to 1 after the warm-up, epoch) -> factor of the learning rate.
SCHEDULES: dict[str, Callable[[OptimConfig, float, float], float]] = {
    "constant": _constant,
    "cosine": _cosine,
    "step": _step,
}


def _trainable(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    return [parameter for parameter in parameters if parameter.requires_grad]


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
        """Returns the state of all parts, with parameters numbered over all groups as in any optimizer."""
        self.state = defaultdict(dict, {key: value for part in self.parts for key, value in part.state.items()})
        return super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads into every part its share of the state from :meth:`state_dict`."""
        first_group = 0
        for part in self.parts:
            groups = state_dict["param_groups"][first_group : first_group + len(part.param_groups)]
            indices = {index for group in groups for index in group["params"]}
            state = {index: value for index, value in state_dict["state"].items() if index in indices}
            part.load_state_dict({"state": state, "param_groups": groups})
            first_group += len(groups)
        self.param_groups = [group for part in self.parts for group in part.param_groups]
