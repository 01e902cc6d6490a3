"""Masks on a network that trains: what they cost in the loss, their parameter group, the rise of the temperature."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hgsl.config import MaskConfig, OptimConfig
from hgsl.engine.parts.objective import Objective
from hgsl.models import Embedder
from hgsl.sparsity import Masks, sparsify, temperature_at


class MaskedObjective(nn.Module):
    """The loss of ``inner`` plus a penalty, lambda times the sum of the masks; it is told of each epoch beforehand."""

    def __init__(self, inner: Objective, penalty: Callable[[], Tensor] | None, before: Callable[[int], None]) -> None:
        super().__init__()
        self.inner, self.penalty, self.before = inner, penalty, before

    @property
    def loss_fn(self) -> nn.Module:
        """The loss itself, without the penalty."""
        return self.inner.loss_fn

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        loss: Tensor = self.inner(embeddings, labels)
        return loss + self.penalty() if self.penalty else loss

    def start_epoch(self, epoch: int) -> None:
        self.inner.start_epoch(epoch)
        self.before(epoch)


def mask_backbone(model: Embedder, settings: MaskConfig) -> Masks | None:
    """Masks the backbone's layers in place, those that ``settings`` name or all, unless they say none."""
    side = model.data_config["image_size"]
    example = torch.zeros(2, 3, side, side, device=next(model.parameters()).device)
    return mask(model, settings, example, settings.include or ["backbone"])


def mask(model: nn.Module, settings: MaskConfig, example: Tensor, include: Sequence[str]) -> Masks | None:
    """Masks in place the layers that ``include`` names, all if it is empty, unless ``settings`` say none.

    Args:
        model: The network.
        settings: How finely, where the scores start, what the penalty counts.
        example: An input for tracing.
        include: Patterns of the layers.
    """
    if settings.granularity == "none":
        return None
    return sparsify(
        model,
        settings.mask_initial_value,
        include,
        settings.exclude,
        settings.granularity,
        inplace=True,
        example=example,
        penalty=settings.penalty,
    )[1]


def with_masks(objective: Objective, masks: Masks, settings: MaskConfig, epochs: int) -> MaskedObjective:
    """The objective of a search in one round: beta rises from 1 to ``final_temp`` over the epochs."""

    def before(epoch: int) -> None:
        masks.temperature = temperature_at(epoch, epochs, settings.final_temp)

    return MaskedObjective(objective, lambda: settings.lmbda * masks.penalty(), before)


def groups_with_masks(
    groups: list[dict[str, Any]], scores: list[nn.Parameter], settings: MaskConfig, optim: OptimConfig
) -> list[dict[str, Any]]:
    """Takes the scores out of the groups of the weights: they have a rate of their own and no weight decay."""
    left_out = {id(parameter) for parameter in scores}
    kept = [{**group, "params": [p for p in group["params"] if id(p) not in left_out]} for group in groups]
    kept = [group for group in kept if group["params"]]
    if scores:
        kept.append({"name": "masks", "params": scores, "lr": settings.mask_lr or optim.lr, "weight_decay": 0.0})
    return kept
