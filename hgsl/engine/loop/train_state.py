"""State of a stage of training, saved and restored as one, and the settings of its steps."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from timm.utils import ModelEmaV3
from torch import Tensor
from torch.amp import GradScaler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from hgsl.common.random_state import random_state, restore_random_state
from hgsl.engine.parts.distillation import TeacherEmbeddings
from hgsl.engine.parts.masking import MaskedObjective
from hgsl.engine.parts.objective import Objective
from hgsl.engine.parts.shards import load_optimizer_state, optimizer_state, sharded_loss
from hgsl.losses import ShardedHardGlobalSoftminLoss
from hgsl.models import Embedder

READ_EVERY = 50  # steps between two reads from a GPU, unless run.log_every is set

Batch = tuple[Tensor, Tensor, Tensor]  # images (B, 3, H, W), labels (B,), ids (B,)


@dataclass
class TrainState:
    """Everything that changes during a stage of training, saved and restored together.

    A step calls ``network`` and ``loss_call``: the model and the objective, compiled or wrapped in
    DistributedDataParallel where needed. Their parameters are the model's and the objective's. ``teacher`` gives the
    embeddings of a teacher for a batch, in a run with distillation.
    """

    model: Embedder
    objective: Objective | MaskedObjective
    network: Callable[[Tensor], Tensor]
    loss_call: Callable[[Tensor, Tensor | None, Tensor | None], Tensor]
    optimizer: Optimizer
    schedule: LambdaLR
    scaler: GradScaler
    ema: ModelEmaV3 | None = None
    step: int = 0
    best: dict[str, Any] = field(default_factory=dict)
    teacher: TeacherEmbeddings | None = None

    def state_dict(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "best": self.best,
            "model": self.model.state_dict(),
            "objective": self.objective.state_dict(),
            "optimizer": optimizer_state(self.optimizer, self.shard),
            "schedule": {"last_epoch": self.schedule.last_epoch},
            "scaler": self.scaler.state_dict(),
            "ema": self.ema.module.state_dict() if self.ema else None,
            "random": random_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step, self.best = state["step"], state["best"]
        self.model.load_state_dict(state["model"])
        self.objective.load_state_dict(state["objective"])
        load_optimizer_state(self.optimizer, state["optimizer"], self.shard)
        self.schedule.last_epoch = state["schedule"]["last_epoch"]
        for group, rate in zip(self.optimizer.param_groups, self.rates(), strict=True):
            group["lr"] = rate  # exactly, also where the saved one was a float32 tensor
        self.scaler.load_state_dict(state["scaler"])
        if self.ema:
            self.ema.module.load_state_dict(state["ema"])
        restore_random_state(state["random"])

    def extend(self, state: dict[str, Any]) -> None:
        """Starts from the last state of a finished stage: its weights and the moments of its optimizer.

        The schedule and the running mean of the weights start anew, and so does the count of early stopping.
        """
        best = {**state["best"], "evaluations_since": 0} if state["best"] else {}
        start = {"step": 0, "schedule": {"last_epoch": 0}, "ema": state["model"], "best": best}
        self.load_state_dict({**state, **start})

    def rates(self) -> list[float]:
        """The learning rate of each parameter group in the next step, without reading from a device."""
        epoch = self.schedule.last_epoch
        pairs = zip(self.schedule.base_lrs, self.schedule.lr_lambdas, strict=True)
        return [float(base) * float(factor(epoch)) for base, factor in pairs]

    @property
    def shard(self) -> ShardedHardGlobalSoftminLoss | None:
        """The loss with this process's shard of the centers, if they are sharded."""
        return sharded_loss(self.objective)

    @property
    def final_model(self) -> Embedder:
        """The model that is evaluated and saved: the running mean of the weights, if one is kept."""
        return self.ema.module if self.ema else self.model


@dataclass(frozen=True)
class LoopOptions:
    """Settings of the loop and its steps.

    Attributes:
        steps_per_epoch: Steps in an epoch.
        epochs: Epochs of the stage.
        accumulate: Micro-batches per step.
        clip: The largest norm of the gradient; None does not clip.
        frozen: The part of the model that keeps its evaluation mode.
        frozen_depth: The share of the first layers that keeps it too.
        epochs_before: Epochs before the stage, from which logs and messages count on.
        save_every: Steps between two saves.
        log_every: Steps between two reads of loss, gradient norm and alpha from the device.
        cuda_graphs: Whether a step is captured as a CUDA graph; ``auto`` measures whether that pays.
        autotune: Whether cuDNN times its algorithms for the shapes of the run.
    """

    steps_per_epoch: int
    epochs: int
    accumulate: int
    clip: float | None
    frozen: str
    save_every: int
    log_every: int = 1
    cuda_graphs: Literal["off", "auto", "on"] = "off"
    autotune: bool = False
    frozen_depth: float = 0.0
    epochs_before: int = 0


def reads_after(log_every: int | None, device: torch.device) -> int:
    """Returns the number of steps between two reads from ``device`` that ``run.log_every`` means."""
    return log_every or (READ_EVERY if device.type == "cuda" else 1)
