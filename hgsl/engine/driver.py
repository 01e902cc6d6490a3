"""Driver of every run: trains a problem stage by stage, saves its state, and resumes within a stage."""

import copy
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from torch import Tensor

from hgsl.common import ranks
from hgsl.common.errors import InputError
from hgsl.config import Config
from hgsl.engine.callbacks import Callback
from hgsl.engine.folder import run_folder
from hgsl.engine.folder.checkpoint import keep_states, save_state
from hgsl.engine.folder.environment import machine, versions
from hgsl.engine.folder.logging import MetricLog
from hgsl.engine.loop.loop import Loop
from hgsl.engine.loop.state import build_state
from hgsl.engine.loop.train_state import LoopOptions, TrainState, reads_after
from hgsl.engine.problem import Problem
from hgsl.engine.runtime import Runtime
from hgsl.engine.stages import Stage
from hgsl.engine.trackers.tracking import Tracking
from hgsl.sparsity import Masks, temperature_at

AfterEpoch = Callable[[Stage, int, TrainState], dict[str, float]]


class Driver:
    """Trains a problem stage by stage.

    Args:
        config: The settings.
        folder: The run folder.
        runtime: Device and precision.
        problem: The model, and how it is trained.
        stages: See :class:`Stage`.
        masks: The masks on the problem's model, if it has any.
        after_epoch: (stage, epoch, state) -> values to log, called before the state is saved.
        started: Reading of ``time.perf_counter`` at the beginning of the run.
        is_over: State -> whether a stage ends before its last epoch, the same on every process.
        callbacks: Called after steps and epochs; see :class:`Callback`.

    Attributes:
        before: The scores before training, or {}.
        history: A record per epoch: ``stage``, ``epoch`` and the numbers of ``after_epoch``.
        state: The state of the current or last stage.
        tracking: The trackers, which follow the steps of all stages as one sequence.
    """

    state: TrainState

    def __init__(
        self,
        config: Config,
        folder: Path,
        runtime: Runtime,
        problem: Problem,
        stages: list[Stage],
        masks: Masks | None,
        after_epoch: AfterEpoch,
        started: float,
        is_over: Callable[[TrainState], bool] = lambda state: False,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        self.config, self.folder, self.runtime = config, folder, runtime
        self.problem, self.stages, self.masks, self.after_epoch = problem, stages, masks, after_epoch
        self.is_over, self.callbacks, self.tracking = is_over, callbacks, Tracking()
        self.before: dict[str, Any] = {}
        self.history: list[dict[str, Any]] = []
        self._objective_at_checkpoint: dict[str, Any] | None = None
        self._precisions = [runtime.precision]
        self._started = started

    def run(self, saved: dict[str, Any] | None) -> None:
        """Trains all stages, or the remaining ones of the state ``saved``.

        Raises:
            InputError: The images differ from those of the saved run.
        """
        first = 0
        if saved:
            self._restore(saved)
            first = saved["stage"] + self._is_extended(saved)
        else:
            self.before = self.problem.start()
        for number in range(first, len(self.stages)):
            start = saved["train"] if saved and number == first else None
            self._run_stage(number, start, extends=bool(saved and saved["stage"] < number))

    def steps_before(self, number: int) -> int:
        """Returns the number of steps of all stages before stage ``number``."""
        return sum(stage.epochs for stage in self.stages[:number]) * self.problem.steps_per_epoch

    def finished_model(self) -> tuple[Any, Masks | None]:
        """Returns the trained model with closed weights set to zero, and its masks, if it has any.

        The model is that of the running mean of the weights, if there is one.
        """
        model = self.state.final_model
        if self.masks is None:
            return model, None
        masks = Masks(model)
        masks.ticket = True
        return masks.finalize(), masks

    def bytes_on_disk(self) -> int:
        """Estimates the size of a run's saved states and model: the weights, and the optimizer's moments of each."""
        tensors = [*self.problem.model.state_dict().values(), *self.problem.objective.parameters()]
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        states = self.config.train.keep + 1  # the new state is written before the old one is removed
        return size * (3 * states + 1)

    def metadata(self) -> dict[str, Any]:
        """Returns the entries of every report besides the results: seed, device, precision, duration and versions."""
        return {
            "seed": self.config.run.seed,
            "device": str(self.runtime.device),
            "precision": ", then ".join(self._precisions),
            "processes": ranks.world_size(),
            "seconds": round(time.perf_counter() - self._started, 1),
            "versions": versions(),
            "machine": machine(),
        }

    def _is_extended(self, saved: dict[str, Any]) -> bool:
        """Whether the saved state is the last one of a stage that the next one extends."""
        number, step = saved["stage"], saved["train"]["step"]
        extended = number + 1 < len(self.stages) and self.stages[number + 1].epochs_before > 0
        return extended and step == self.stages[number].epochs * self.problem.steps_per_epoch

    def _run_stage(self, number: int, saved: dict[str, Any] | None, *, extends: bool) -> None:
        stage, model = self.stages[number], self.problem.model
        if saved:
            model.load_state_dict(saved["model"])  # before the masks are hardened
        elif stage.rewinds:
            self._rewind()
        if stage.masks == "ticket":
            self._harden_masks()
        self.state = build_state(self.config, self.problem, stage, self.runtime, self.masks)
        if saved and extends:
            self.state.extend(saved)
            ranks.print_main(f"{stage.name} of {stage.epochs} epochs, after {stage.epochs_before}, with a new schedule")
        elif saved:
            self.state.load_state_dict(saved)
            total = stage.epochs * self.problem.steps_per_epoch
            ranks.print_main(f"resuming {stage.name} at step {self.state.step} of {total}")
        self._fit(number)
        if stage.prunes and self.masks:
            self.masks.prune(stage.prune_temperature)

    def loop_options(self, stage: Stage) -> LoopOptions:
        """Returns the settings of the steps of a stage."""
        train = self.config.train
        return LoopOptions(
            steps_per_epoch=self.problem.steps_per_epoch,
            epochs=stage.epochs,
            accumulate=train.accumulate,
            clip=self.config.optim.clip,
            frozen=self.config.model.freeze,
            frozen_depth=self.config.model.freeze_depth,
            save_every=train.save_every,
            log_every=reads_after(self.config.run.log_every, self.runtime.device),
            cuda_graphs=self.config.run.cuda_graphs,
            autotune=self.config.run.autotune,
            epochs_before=stage.epochs_before,
        )

    def _fit(self, number: int) -> None:
        stage, state = self.stages[number], self.state
        with ExitStack() as stack:
            log = None
            if ranks.is_main():
                log_folder = self.folder / stage.log_folder
                log_folder.mkdir(parents=True, exist_ok=True)
                log = stack.enter_context(self._metric_log(number, log_folder))
            Loop(
                state,
                self.loop_options(stage),
                self.runtime,
                log,
                before_epoch=lambda epoch: self._before_epoch(stage, epoch),
                after_epoch=lambda epoch: self._after_epoch(stage, epoch),
                save=lambda: self._save(number),
                name_images=self.problem.name_images,
                folder=self.folder,
                is_over=lambda: self.is_over(state),
                callbacks=self.callbacks,
            ).run(self.problem.batches(stage.seed, state.step, stage.epochs))

    def _metric_log(self, number: int, folder: Path) -> MetricLog:
        """The log of a stage; the trackers count the steps of all stages, each of which may have its own log."""
        logged = self.stages[number].epochs_before * self.problem.steps_per_epoch
        before, tracking = self.steps_before(number) - logged, self.tracking
        return MetricLog(
            folder, logged + self.state.step, lambda step, values: tracking.write(before + step, values), tracking.flush
        )

    def _before_epoch(self, stage: Stage, epoch: int) -> None:
        self.problem.objective.start_epoch(stage.epochs_before + epoch)
        if not self.masks or stage.masks != "soft":
            return
        self.masks.temperature = temperature_at(epoch, stage.epochs, self.config.sparsify.final_temp)
        # A run resumed in this epoch has the checkpoint already.
        if epoch == stage.checkpoint_epoch and self.masks.saved is None:
            self.masks.checkpoint()
            self._objective_at_checkpoint = copy.deepcopy(self.problem.objective.state_dict())

    def _after_epoch(self, stage: Stage, epoch: int) -> dict[str, float]:
        numbers = self.after_epoch(stage, epoch, self.state)
        self.history.append({"stage": stage.name, "epoch": stage.epochs_before + epoch + 1, **numbers})
        return numbers

    def _rewind(self) -> None:
        assert self.masks is not None
        self.masks.rewind()
        if self._objective_at_checkpoint is not None:
            self.problem.objective.load_state_dict(self._objective_at_checkpoint)

    def _harden_masks(self) -> None:
        assert self.masks is not None
        for scores in self.masks.mask_parameters():
            scores.requires_grad_(False)
        self.masks.ticket = True
        ranks.print_main(f"ticket: {100 * self.masks.density():.1f} % of the masked weights are kept")

    def _save(self, number: int) -> None:
        content = {
            "stage": number,
            "train": self.state.state_dict(),  # collective: sharded centers are gathered
            "before": self.before,
            "history": self.history,
            "checkpoint": self.masks.saved if self.masks else None,
            "objective_at_checkpoint": self._objective_at_checkpoint,
            "layer_costs": self.masks.costs.costs if self.masks and self.masks.costs else None,
            "precisions": self._precisions,
            "seconds": time.perf_counter() - self._started,
            "split": self.problem.split,
        }
        if ranks.is_main():
            path = self.folder / run_folder.STATE
            step = self.steps_before(number) + self.state.step
            save_state(path, content)
            keep_states(path, self.folder / run_folder.STATES, step, self.config.train.keep)

    def _restore(self, saved: dict[str, Any]) -> None:
        if saved["split"] != self.problem.split:
            raise InputError(
                f"the images are not those of the start of the run (manifest hash {self.problem.split}, then "
                f"{saved['split']}): restore them, or start again with --overwrite"
            )
        self.before, self.history = saved["before"], saved["history"]
        self._objective_at_checkpoint = saved["objective_at_checkpoint"]
        if self.masks:
            self.masks.saved = self._on_device(saved["checkpoint"])
            if self.masks.costs:  # measured ones differ from run to run
                self.masks.costs.costs.copy_(saved["layer_costs"])
                self.masks.costs.set_prices()
        if saved["precisions"][-1:] != self._precisions:
            self._precisions = [*saved["precisions"], *self._precisions]
        else:
            self._precisions = saved["precisions"]
        self._started -= saved["seconds"]

    def _on_device(self, tensors: dict[str, Tensor] | None) -> dict[str, Tensor] | None:
        return tensors and {name: tensor.to(self.runtime.device) for name, tensor in tensors.items()}
