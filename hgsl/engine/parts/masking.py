"""Masks on a network in training: creation, penalty in the loss, parameter group."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hgsl.config import MaskConfig, OptimConfig, SparsifyConfig
from hgsl.engine.parts.objective import Objective
from hgsl.models import Embedder
from hgsl.sparsity import Masks, sparsify

OPEN = 10.0  # an initial score at which open masks are one, also as a ticket
TARGET_REACHED = 0.6  # of a stage's steps, after which the line of the target is level
ADAPTATION = 1.0  # change of log(lambda) in a step, for a share that is 1 too large


class MaskedObjective(nn.Module):
    """The loss of ``inner`` plus, for labeled images, lambda times the sum of the masks.

    With ``settings.target`` lambda is adapted at every call: it grows while the share that is left lies above a line
    from 1 to the target, and shrinks below it.

    Args:
        inner: The loss.
        masks: The masks.
        settings: Lambda and the target.
        calls: Calls for labeled images in the whole stage.
    """

    lmbda: Tensor
    call: Tensor

    def __init__(self, inner: Objective, masks: Masks, settings: MaskConfig, calls: int) -> None:
        super().__init__()
        self.inner, self.masks, self.target, self.calls = inner, masks, settings.target, calls
        device = masks.mask_parameters()[0].device
        self.register_buffer("lmbda", torch.tensor(settings.lmbda, device=device))
        self.register_buffer("call", torch.tensor(0.0, device=device))

    @property
    def loss_fn(self) -> nn.Module:
        """The loss itself, without the penalty."""
        return self.inner.loss_fn

    def forward(self, embeddings: Tensor, labels: Tensor | None, teacher: Tensor | None = None) -> Tensor:
        loss: Tensor = self.inner(embeddings, labels, teacher)
        if labels is None:
            return loss
        if self.target is not None:
            self._adapt(self.target)
        return loss + self.lmbda * self.masks.penalty()

    @torch.no_grad()
    def _adapt(self, target: float) -> None:
        progress = self.call / (TARGET_REACHED * self.calls)
        wanted = 1 - (1 - target) * progress.clamp(max=1)
        self.lmbda *= torch.exp(ADAPTATION * (self.masks.share() - wanted))
        self.call += 1


def mask_backbone(model: Embedder, settings: MaskConfig) -> Masks | None:
    """Masks in place the layers of the backbone that ``settings`` name, all by default; returns None without masks."""
    side = model.data_config["image_size"]
    example = torch.zeros(2, 3, side, side, device=next(model.parameters()).device)
    return mask(model, settings, example, settings.include or ["backbone"])


def mask(model: nn.Module, settings: MaskConfig, example: Tensor, include: Sequence[str]) -> Masks | None:
    """Masks in place the layers that ``include`` names, all if it is empty; returns None for granularity ``none``.

    Args:
        model: The network.
        settings: Granularity, initial scores and penalty.
        example: An input for tracing.
        include: Patterns of the layers.
    """
    if settings.granularity == "none":
        return None
    reconstruction = isinstance(settings, SparsifyConfig) and settings.method == "reconstruction"
    return sparsify(
        model,
        OPEN if reconstruction else settings.mask_initial_value,
        include,
        settings.exclude,
        settings.granularity,
        inplace=True,
        example=example,
        penalty=settings.penalty,
    )[1]


def groups_with_masks(
    groups: list[dict[str, Any]], scores: list[nn.Parameter], settings: MaskConfig, optim: OptimConfig
) -> list[dict[str, Any]]:
    """Moves the scores from the groups of the weights to one of their own, with its learning rate and no decay."""
    score_ids = {id(parameter) for parameter in scores}
    weights = [{**group, "params": [p for p in group["params"] if id(p) not in score_ids]} for group in groups]
    weights = [group for group in weights if group["params"]]
    if scores:
        weights.append({"name": "masks", "params": scores, "lr": settings.mask_lr or optim.lr, "weight_decay": 0.0})
    return weights
