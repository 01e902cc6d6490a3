"""Interface between the driver of a run and the model and loss that it trains."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from hgsl.engine.loop.train_state import Batch
from hgsl.engine.parts.distillation import TeacherEmbeddings
from hgsl.engine.parts.objective import Objective


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A model, and how it is trained.

    Attributes:
        model: The model that is evaluated and saved, on its device.
        network: The module that a training step calls: the model or a part of it, with shared parameters.
        objective: (outputs, labels, the teacher's embeddings or None) -> loss.
        start: Prepares model and objective before the first step of a run; returns the scores before training, or {}.
        steps_per_epoch: Batches in an epoch.
        batches: (seed, step, epochs) -> the batches of a stage of so many epochs, from that step on.
        groups: () -> the parameter groups with their learning rates.
        name_images: Ids of a batch -> image names, for error messages.
        split: Identity of the images, which must not change when a run is resumed.
        evaluation_batch: () -> a batch of images as the model takes them in an evaluation.
        start_size: Number of images that ``start`` embeds.
        uses_loaders: Whether processes read the images of ``batches``; False for images in memory.
        teacher: The teacher, in a run with distillation.
        record_split: Writes the record of the images into a run folder; None if there is none.
    """

    model: Any
    network: nn.Module
    objective: Objective
    start: Callable[[], dict[str, Any]]
    steps_per_epoch: int
    batches: Callable[[int, int, int], Iterator[Batch]]
    groups: Callable[[], list[dict[str, Any]]]
    name_images: Callable[[Tensor], list[str]]
    split: str
    evaluation_batch: Callable[[], Tensor]
    start_size: int = 0
    uses_loaders: bool = True
    teacher: TeacherEmbeddings | None = None
    record_split: Callable[[Path], None] | None = None
