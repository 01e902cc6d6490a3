"""The training loop: steps over a stream of batches, with everything that decides the next step in one state."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm

from hgsl.common.errors import InputError
from hgsl.common.files import write_text
from hgsl.engine.build import Place
from hgsl.engine.checkpoint import random_state, restore_random_state
from hgsl.engine.freeze import train_mode
from hgsl.engine.logging import MetricLog
from hgsl.engine.run_folder import LAST_BATCH
from hgsl.engine.stop import Stopped, StopRequest
from hgsl.models import Embedder

Batch = tuple[Tensor, Tensor, Tensor]  # images (B, 3, H, W), labels (B,), ids (B,)


@dataclass
class TrainState:
    """All that changes during training; saved and restored as one."""

    model: Embedder
    loss_fn: nn.Module
    optimizer: Optimizer
    schedule: LambdaLR
    scaler: GradScaler
    step: int = 0

    def state_dict(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "model": self.model.state_dict(),
            "loss": self.loss_fn.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": {"last_epoch": self.schedule.last_epoch},
            "scaler": self.scaler.state_dict(),
            "random": random_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        self.loss_fn.load_state_dict(state["loss"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.last_epoch = state["schedule"]["last_epoch"]
        self.scaler.load_state_dict(state["scaler"])
        restore_random_state(state["random"])


@dataclass(frozen=True)
class LoopOptions:
    """How the loop steps, as opposed to what it trains."""

    steps_per_epoch: int
    epochs: int
    accumulate: int
    clip: float | None
    frozen: str
    save_every: int


@dataclass
class Loop:
    """Takes a state through the rest of its epochs.

    Attributes:
        state: Is changed in place.
        options: See :class:`LoopOptions`.
        place: Device and precision.
        log: Gets loss, rates, gradient norm and speed of every step.
        save: Writes the state; called every ``save_every`` steps, after each epoch, and when a signal asks to stop.
        name_images: Ids -> paths, for the message about a loss that is not finite.
        folder: Where the paths of such a batch are written.
    """

    state: TrainState
    options: LoopOptions
    place: Place
    log: MetricLog
    save: Callable[[], None]
    name_images: Callable[[Tensor], list[str]]
    folder: Path

    def run(self, batches: Iterator[Batch]) -> None:
        """Trains from ``state.step`` on, with a stream of batches that starts there.

        Raises:
            InputError: The loss is NaN or infinite.
            Stopped: A signal ended the run; its state is saved.
        """
        with StopRequest() as stop:
            for epoch in range(self.state.step // self.options.steps_per_epoch, self.options.epochs):
                train_mode(self.state.model, self.options.frozen)
                self._epoch(epoch, batches, stop)

    def _epoch(self, epoch: int, batches: Iterator[Batch], stop: StopRequest) -> None:
        state, steps = self.state, self.options.steps_per_epoch
        title = f"epoch {epoch + 1}/{self.options.epochs}"
        meter = Meter()
        first = state.step - epoch * steps
        bar = tqdm(range(first, steps), desc=title, initial=first, total=steps, unit="step", disable=None, leave=False)
        for _ in bar:
            with meter.waiting():
                batch = next(batches)
            loss, norm = train_step(state, batch, self.options, self.place)
            if not math.isfinite(loss):
                raise self._not_finite(loss, batch)
            meter.add(loss, len(batch[1]))
            rates = {f"lr/{group['name']}": group["lr"] for group in state.optimizer.param_groups}
            state.schedule.step()
            state.step += 1
            bar.set_postfix(loss=f"{loss:.3f}", images_s=f"{meter.speed():.0f}", refresh=False)
            self.log.write(state.step, loss=loss, grad_norm=norm, images_per_second=meter.speed(), **rates)
            if stop.number is not None or state.step % steps == 0 or state.step % self.options.save_every == 0:
                self.log.flush()
                self.save()
            if stop.number is not None:
                raise Stopped(stop.number)
        print(f"{title}  {meter}", flush=True)

    def _not_finite(self, loss: float, batch: Batch) -> InputError:
        path = self.folder / LAST_BATCH
        write_text(path, "".join(f"{name}\n" for name in self.name_images(batch[2])))
        return InputError(
            f"the loss is {loss} at step {self.state.step + 1}: the batch's images are listed in {path}; "
            "try a lower optim.lr or optim.centers_lr, a larger loss.alpha, or run.precision float32"
        )


class Meter:
    """Mean loss and speed of an epoch, and the share of its time that went by without an image to work on."""

    def __init__(self) -> None:
        self.started, self.waited = time.perf_counter(), 0.0
        self.loss_sum, self.steps, self.images = 0.0, 0, 0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.waited += time.perf_counter() - started

    def add(self, loss: float, images: int) -> None:
        self.loss_sum, self.steps, self.images = self.loss_sum + loss, self.steps + 1, self.images + images

    def speed(self) -> float:
        """Images a second."""
        return self.images / (time.perf_counter() - self.started)

    def __str__(self) -> str:
        seconds = time.perf_counter() - self.started
        return (
            f"loss {self.loss_sum / max(1, self.steps):.4f}  {self.speed():.0f} images/s  {seconds:.0f} s, "
            f"{100 * self.waited / seconds:.0f} % of it waiting for images"
        )


def train_step(state: TrainState, batch: Batch, options: LoopOptions, place: Place) -> tuple[float, float]:
    """One step of the optimiser over one batch, in ``accumulate`` micro-batches.

    Returns:
        The mean loss and the norm of the whole gradient before clipping. If either is not finite the parameters are
        left as they were (a float16 scaler skips such a step by itself, so there only the loss counts).
    """
    images, labels, _ = batch
    state.optimizer.zero_grad(set_to_none=True)
    total = 0.0
    pieces = min(options.accumulate, len(labels))
    for part, part_labels in zip(images.chunk(pieces), labels.chunk(pieces), strict=True):
        part = part.to(place.device, non_blocking=True)
        if state.model.is_convolutional:
            part = part.contiguous(memory_format=torch.channels_last)
        with place.autocast():
            embeddings = state.model(part)
            if not embeddings.isfinite().all():
                return math.nan, math.nan
            loss = state.loss_fn(embeddings, part_labels.to(place.device))
        loss = loss * (len(part_labels) / len(labels))
        state.scaler.scale(loss).backward()
        total += float(loss.detach())
    state.scaler.unscale_(state.optimizer)
    parameters = [p for group in state.optimizer.param_groups for p in group["params"]]
    norm = float(nn.utils.clip_grad_norm_(parameters, math.inf if options.clip is None else options.clip))
    if math.isfinite(total) and not math.isfinite(norm) and not state.scaler.is_enabled():
        return math.nan, norm
    if math.isfinite(total):
        state.scaler.step(state.optimizer)
        state.scaler.update()
    return total, norm
