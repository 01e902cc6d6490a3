"""Training loop: steps over a stream of batches, with everything that determines the next step in one state."""

import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from timm.utils import ModelEmaV3
from torch import Tensor
from torch.amp import GradScaler
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm

from hgsl.common import ranks
from hgsl.common.files import write_text
from hgsl.common.random_state import random_state, restore_random_state
from hgsl.engine.distributed import agree, share_buffers
from hgsl.engine.folder.logging import MetricLog
from hgsl.engine.folder.run_folder import LAST_BATCH
from hgsl.engine.loop.meter import Meter
from hgsl.engine.loop.stop import Diverged, Stopped, StopRequest
from hgsl.engine.parts.freeze import train_mode
from hgsl.engine.parts.masking import MaskedObjective
from hgsl.engine.parts.objective import Objective, scale_parameter
from hgsl.engine.parts.shards import clip_gradients, load_optimizer_state, optimizer_state, sharded_loss
from hgsl.engine.runtime import Runtime
from hgsl.losses import ShardedHardGlobalSoftminLoss
from hgsl.models import Embedder

Batch = tuple[Tensor, Tensor, Tensor]  # images (B, 3, H, W), labels (B,), ids (B,)


@dataclass
class TrainState:
    """Everything that changes during a stage of training, saved and restored together.

    A step calls ``network`` and ``loss_call``: the model and the objective, compiled or wrapped in
    DistributedDataParallel where needed. Their parameters are the model's and the objective's.
    """

    model: Embedder
    objective: Objective | MaskedObjective
    network: Callable[[Tensor], Tensor]
    loss_call: Callable[[Tensor, Tensor], Tensor]
    optimizer: Optimizer
    schedule: LambdaLR
    scaler: GradScaler
    ema: ModelEmaV3 | None = None
    step: int = 0
    best: dict[str, Any] = field(default_factory=dict)

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
        self.scaler.load_state_dict(state["scaler"])
        if self.ema:
            self.ema.module.load_state_dict(state["ema"])
        restore_random_state(state["random"])

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
    """Settings of the loop's steps."""

    steps_per_epoch: int
    epochs: int
    accumulate: int
    clip: float | None
    frozen: str
    save_every: int


@dataclass
class Loop:
    """Trains a state through the rest of its epochs.

    Attributes:
        state: Changed in place.
        options: See :class:`LoopOptions`.
        runtime: Device and precision.
        log: Receives loss, rates, gradient norm and speed of every step.
        before_epoch: Called with the number of each epoch, also of one in which a run resumes.
        after_epoch: Called with the epoch's number before its state is saved; returns values to log.
        save: Writes the state; called every ``save_every`` steps, after each epoch, and after a signal to stop.
        name_images: Ids -> paths, for the message about a loss that is not finite.
        folder: Folder for the list of these paths.
    """

    state: TrainState
    options: LoopOptions
    runtime: Runtime
    log: MetricLog | None
    before_epoch: Callable[[int], None]
    after_epoch: Callable[[int], dict[str, float]]
    save: Callable[[], None]
    name_images: Callable[[Tensor], list[str]]
    folder: Path

    def run(self, batches: Iterator[Batch]) -> None:
        """Trains from ``state.step`` on, with a stream of batches that starts there.

        Raises:
            Diverged: The loss is NaN or infinite.
            Stopped: A signal ended the run; its state is saved.
        """
        with StopRequest() as stop:
            for epoch in range(self.state.step // self.options.steps_per_epoch, self.options.epochs):
                train_mode(self.state.model, self.options.frozen)
                self.before_epoch(epoch)
                self._epoch(epoch, batches, stop)
            # For a signal after the last step; also a barrier until the first process has saved.
            _, signal_number = agree(0.0, stop.number or 0, self.runtime.device)
            if signal_number:
                raise Stopped(signal_number)

    def _epoch(self, epoch: int, batches: Iterator[Batch], stop: StopRequest) -> None:
        state, steps = self.state, self.options.steps_per_epoch
        title = f"epoch {epoch + 1}/{self.options.epochs}"
        meter = Meter(ranks.world_size())
        first = state.step - epoch * steps
        disable = None if ranks.is_main() else True  # None disables it unless stderr is a terminal
        bar = tqdm(
            range(first, steps), desc=title, initial=first, total=steps, unit="step", disable=disable, leave=False
        )
        for _ in bar:
            with meter.waiting():
                batch = next(batches)
            loss, norm = train_step(state, batch, self.options, self.runtime)
            loss, signal_number = agree(loss, stop.number or 0, self.runtime.device)
            if not math.isfinite(loss):
                raise self._not_finite(loss, batch)
            meter.add(loss, len(batch[1]))
            record = {"loss": loss, **meter.record(), **self._state_values()}
            if math.isfinite(norm):  # a float16 scaler may try too large a scale, and skips the step
                record["grad_norm"] = norm
            state.schedule.step()
            state.step += 1
            waited = f"{100 * meter.wait_share():.0f}%"
            bar.set_postfix(loss=f"{loss:.3f}", images_s=f"{meter.speed():.0f}", data_wait=waited, refresh=False)
            at_end = state.step % steps == 0
            if at_end:
                share_buffers(state.model, state.final_model)
                record |= self.after_epoch(epoch)
            self._write(record)
            if signal_number or at_end or state.step % self.options.save_every == 0:
                self._save()
            if signal_number:
                raise Stopped(signal_number)
        ranks.print_main(f"{title}  {meter}")

    def _state_values(self) -> dict[str, float]:
        """Learning rates and alpha, for the log."""
        numbers = {f"lr/{group['name']}": group["lr"] for group in self.state.optimizer.param_groups}
        alpha = scale_parameter(self.state.objective.loss_fn)
        if alpha is not None:
            numbers["alpha"] = float(alpha.detach())
        return numbers

    def _write(self, record: dict[str, float]) -> None:
        if self.log:
            self.log.write(self.state.step, **record)

    def _save(self) -> None:
        if self.log:
            self.log.flush()
        self.save()

    def _not_finite(self, loss: float, batch: Batch) -> Diverged:
        path = self.folder / LAST_BATCH
        names = ranks.all_gather_object(self.name_images(batch[2]))  # a batch is divided among the processes
        if ranks.is_main():
            write_text(path, "".join(f"{name}\n" for name in itertools.chain(*names)))
        return Diverged(
            f"the loss is {loss} at step {self.state.step + 1}: the batch's images are listed in {path}; "
            "try a lower optim.lr or optim.centers_lr, a larger loss.alpha, or run.precision float32"
        )


def train_step(state: TrainState, batch: Batch, options: LoopOptions, runtime: Runtime) -> tuple[float, float]:
    """One step of the optimizer over one batch, in ``accumulate`` micro-batches.

    Returns:
        The mean loss and the norm of the whole gradient before clipping. If either is not finite, the parameters are
        unchanged (with a float16 scaler, which skips such steps itself, only the loss is checked).
    """
    images, labels, _ = batch
    state.optimizer.zero_grad(set_to_none=True)
    total = 0.0
    micro_batches = list(zip(images.chunk(options.accumulate), labels.chunk(options.accumulate), strict=True))
    for number, (part, part_labels) in enumerate(micro_batches, start=1):
        with _averaged_gradients(state, number == len(micro_batches)):
            with runtime.autocast():
                embeddings = state.network(runtime.prepare(part, state.model.is_convolutional))
            finite = bool(embeddings.isfinite().all())
            if not math.isfinite(agree(0.0 if finite else math.nan, 0, runtime.device)[0]):
                return math.nan, math.nan  # on every process, since the next call is collective
            loss = state.loss_call(embeddings, part_labels.to(runtime.device)) * (len(part_labels) / len(labels))
            state.scaler.scale(loss).backward()
        total += float(loss.detach())
    state.scaler.unscale_(state.optimizer)
    norm = clip_gradients(state.optimizer, options.clip, state.shard)
    if math.isfinite(total) and not math.isfinite(norm) and not state.scaler.is_enabled():
        return math.nan, norm
    if math.isfinite(total):
        state.scaler.step(state.optimizer)
        state.scaler.update()
        if state.ema:
            state.ema.update(state.model, step=state.step)
    return total, norm


@contextmanager
def _averaged_gradients(state: TrainState, last: bool) -> Iterator[None]:
    """Averages the gradients over processes once per step, with the last micro-batch."""
    with ExitStack() as stack:
        for module in (state.network, state.loss_call):
            if not last and isinstance(module, DistributedDataParallel):
                stack.enter_context(module.no_sync())
        yield
