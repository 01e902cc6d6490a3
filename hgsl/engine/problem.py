"""Interface between the driver of a run and what is trained in it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from hgsl.engine.loop.loop import Batch
from hgsl.engine.parts.objective import Objective


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A model, and how it is trained.

    Attributes:
        model: On its device; untrained, or with the weights it starts from. It is evaluated and saved.
        network: What a training step calls: the model, or the part of it that trains. It shares the model's parameters.
        objective: (outputs, labels) -> loss.
        start: Prepares model and objective before the first step of a run; returns the scores before training, or {}.
        steps_per_epoch: Batches in an epoch.
        batches: (seed, first step) -> the batches of a stage from that step on.
        groups: () -> the parameter groups with their learning rates.
        name_images: Ids of a batch -> image names, for an error message.
        split: Identity of the images, which a resumed run must have in common with its beginning.
    """

    model: Any
    network: nn.Module
    objective: Objective
    start: Callable[[], dict[str, Any]]
    steps_per_epoch: int
    batches: Callable[[int, int], Iterator[Batch]]
    groups: Callable[[], list[dict[str, Any]]]
    name_images: Callable[[Tensor], list[str]]
    split: str
