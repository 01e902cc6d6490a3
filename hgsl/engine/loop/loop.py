"""Training loop: epochs of steps over a stream of batches, their log, and the saves of the state."""

import itertools
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from hgsl.common import ranks
from hgsl.common.files import write_text
from hgsl.common.progress import progress_bar
from hgsl.engine.callbacks import Callback, call_callbacks
from hgsl.engine.distributed import share_buffers
from hgsl.engine.folder.logging import MetricLog
from hgsl.engine.folder.run_folder import LAST_BATCH
from hgsl.engine.loop.graphs import StepFunction, step_function
from hgsl.engine.loop.meter import Meter
from hgsl.engine.loop.pending import PendingStep, ReadStep, read_steps
from hgsl.engine.loop.step import train_step
from hgsl.engine.loop.stop import Diverged, Stopped, StopRequest
from hgsl.engine.loop.train_state import Batch, LoopOptions, TrainState
from hgsl.engine.loop.transfer import RunAhead, copied_ahead, tuned_convolutions
from hgsl.engine.parts.freeze import train_mode
from hgsl.engine.runtime import Runtime
from hgsl.losses import DeferredChecks, deferred_checks

Record = tuple[int, dict[str, float]]  # step, numbers


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
        is_over: Called before each epoch; whether training ends before it. The same on every process.
        callbacks: Called after steps and epochs; see :class:`Callback`.
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
    is_over: Callable[[], bool] = lambda: False
    callbacks: Sequence[Callback] = ()
    _pending: list[PendingStep] = field(default_factory=list, init=False)

    def run(self, batches: Iterator[Batch]) -> None:
        """Trains from ``state.step`` on, with a stream of batches that starts there.

        Raises:
            Diverged: The loss is NaN or infinite.
            Stopped: A signal ended the run; its state is saved.
            Exception: A callback raised it; the state is saved.
        """
        first = self.state.step // self.options.steps_per_epoch
        step = step_function(train_step, self.state, self.options, self.runtime)
        channels_last = self.state.model.prefers_channels_last(self.runtime.device)
        batches = copied_ahead(batches, self.options, self.runtime, channels_last)
        with ExitStack() as stack:
            stop = stack.enter_context(StopRequest())
            checks = stack.enter_context(deferred_checks())
            stack.enter_context(tuned_convolutions(self.options, self.runtime))
            stack.enter_context(_skips_without_warning())
            for epoch in range(first, self.options.epochs):
                if self.is_over():
                    break
                train_mode(self.state.model, self.options.frozen, self.options.frozen_depth)
                self.before_epoch(epoch)
                self._epoch(epoch, batches, step, checks, stop)
            # For a signal after the last step; also a barrier until the first process has saved.
            _, signal_number = read_steps([], stop.number or 0, self.runtime.device)
            if signal_number:
                raise Stopped(signal_number)

    def _epoch(
        self, epoch: int, batches: Iterator[Batch], step: StepFunction, checks: DeferredChecks, stop: StopRequest
    ) -> None:
        state, steps = self.state, self.options.steps_per_epoch
        number = self.options.epochs_before + epoch + 1
        title = f"epoch {number}/{self.options.epochs_before + self.options.epochs}"
        meter, run_ahead = Meter(ranks.world_size()), RunAhead(self.options, self.runtime)
        first = state.step - epoch * steps
        bar = progress_bar(
            range(first, steps),
            shown=ranks.is_main(),
            log_lines=True,
            desc=title,
            initial=first,
            total=steps,
            unit="step",
            leave=False,
        )
        for _ in bar:
            with meter.waiting():
                batch = next(batches)
            numbers = step(state, batch, self.options, self.runtime)
            run_ahead.limit()
            self._pending.append(PendingStep(state.step + 1, numbers, batch[2], self._rates()))
            state.schedule.step()
            state.step += 1
            at_end, saves = state.step % steps == 0, state.step % self.options.save_every == 0
            if not (at_end or saves or self._is_time_to_read(stop)):
                continue
            records, signal_number = self._read(meter, checks, stop)
            waited = f"{100 * meter.wait_share():.0f}%"
            bar.set_postfix(
                loss=f"{records[-1][1]['loss']:.3f}", images_s=f"{meter.speed():.0f}", data_wait=waited, refresh=False
            )
            self._write(records[:-1])
            epoch_values: dict[str, float] = {}
            if at_end:
                bar.close()
                ranks.print_main(f"{title}  {meter}")
                share_buffers(state.model, state.final_model)
                epoch_values = self.after_epoch(epoch)
                records[-1][1].update(epoch_values)
            self._write(records[-1:])
            if signal_number or at_end or saves:
                self._save()
            epoch_values = {"loss": meter.mean_loss(), **epoch_values}
            if error := call_callbacks(self.callbacks, records, number if at_end else None, epoch_values):
                self._save()
                raise error
            if signal_number:
                raise Stopped(signal_number)

    @property
    def _steps_before(self) -> int:
        return self.options.epochs_before * self.options.steps_per_epoch

    def _is_time_to_read(self, stop: StopRequest) -> bool:
        """Whether enough steps are pending; one process also reads after a signal, several must read together."""
        return len(self._pending) >= self.options.log_every or (ranks.world_size() == 1 and stop.number is not None)

    def _read(self, meter: Meter, checks: DeferredChecks, stop: StopRequest) -> tuple[list[Record], int]:
        """Reads all pending steps, and returns their records (step, numbers) and the number of a signal, or 0.

        Raises:
            Diverged: The loss of one is not finite; all of them are in the log up to the one before.
            InputError: The loss found other invalid values.
        """
        pending, self._pending = self._pending, []
        steps, signal_number = read_steps(pending, stop.number or 0, self.runtime.device)
        for step in steps:
            if math.isfinite(step.loss):
                meter.add(step.loss, len(step.ids))
        speed = meter.record()
        records: list[Record] = []
        for step in steps:
            if not math.isfinite(step.loss):
                self._write(records)
                raise self._not_finite(step)
            records.append((self._steps_before + step.step, step.record(speed)))
        checks.raise_errors()
        return records, signal_number

    def _rates(self) -> dict[str, float]:
        """Learning rates of the next step, for the log."""
        names = [f"lr/{group['name']}" for group in self.state.optimizer.param_groups]
        return dict(zip(names, self.state.rates(), strict=True))

    def _write(self, records: list[Record]) -> None:
        if self.log:
            for step, record in records:
                self.log.write(step, **record)

    def _save(self) -> None:
        if self.log:
            self.log.flush()
        self.save()

    def _not_finite(self, step: ReadStep) -> Diverged:
        path = self.folder / LAST_BATCH
        names = ranks.all_gather_object(self.name_images(step.ids))  # a batch is divided among the processes
        if ranks.is_main():
            write_text(path, "".join(f"{name}\n" for name in itertools.chain(*names)))
        return Diverged(
            f"the loss is {step.loss} at step {step.step}: the batch's images are listed in {path}; "
            "try a lower optim.lr or optim.centers_lr, a larger loss.alpha, or run.precision float32"
        )


@contextmanager
def _skips_without_warning() -> Iterator[None]:
    """Hides the warning that the schedule stepped before the optimizer: a float16 scaler may skip the first step."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Detected call of `lr_scheduler\.step\(\)` before")
        yield
