"""The search for a ticket: rounds of training with masks that harden, then the ticket trained from rewound weights.

Stages follow each other: ``round 1``, ``round 2``, ..., ``ticket``; or ``dense`` alone, trained alike without masks.
Every stage has an optimizer and a schedule of its own and runs through the common training loop, which saves and
resumes in the middle of it. Between rounds the scores take the temperature in: s <- min(beta * s, s0).
"""

import copy
import time
from pathlib import Path
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.amp import GradScaler

from hgsl.common import ranks
from hgsl.common.errors import InputError
from hgsl.common.files import write_json
from hgsl.common.random_state import seed_all
from hgsl.config import SparsifyRunConfig
from hgsl.engine.folder import run_folder
from hgsl.engine.folder.checkpoint import keep_states, load_state, save_state
from hgsl.engine.folder.logging import MetricLog
from hgsl.engine.loop.loop import Loop, LoopOptions, TrainState
from hgsl.engine.parts.build import Runtime, build_runtime
from hgsl.engine.parts.masking import MaskedObjective, groups_with_masks, mask
from hgsl.engine.parts.optim import create_optimizer, create_schedule
from hgsl.engine.sparsify.problems import PROBLEMS, Classifier, SparsifyProblem
from hgsl.engine.sparsify.report import Measured, read_scores, save_and_measure, write_layers, write_plot
from hgsl.models import Embedder
from hgsl.sparsity import Masks, temperature_at


def search(
    config: SparsifyRunConfig, config_yaml: str, folder: Path, *, overwrite: bool = False, resume: bool = False
) -> dict[str, Any]:
    """Searches a ticket, trains it, measures it, and writes the run folder.

    Args:
        config: The settings.
        config_yaml: The same as text.
        folder: The run folder.
        overwrite: Whether an earlier run there may be replaced.
        resume: Go on with the run in ``folder``, wherever it stopped.

    Returns:
        The report: ``scores`` on the test images, ``density``, ``layers``, ``costs``, ``history``, and the settings.

    Raises:
        InputError: Settings, data or folder are not usable.
        Stopped: A signal ended the run after its state was saved.
    """
    if resume and (finished := run_folder.finished_report(folder, config_yaml)):
        ranks.print_main(f"{folder} is finished: {finished['scores']}")
        return finished
    if ranks.launched_world_size() > 1:
        raise InputError(
            "a search runs in one process: start several searches side by side, each with its own --run.dir"
        )
    if resume:
        run_folder.check_same(folder, config_yaml)
    else:
        run_folder.check_free(folder, overwrite=overwrite)
    runtime = build_runtime(config)
    seed_all(config.run.seed)
    run = TicketSearch(config, folder, PROBLEMS[config.sparsify.task](config, runtime), runtime)
    with run_folder.locked(folder):
        saved = load_state(folder / run_folder.STATE) if resume else None
        if not resume:
            run_folder.create(folder, config_yaml, overwrite=overwrite)
        return run.to_the_end(saved)


class TicketSearch:
    """The parts of one search, and the stages it goes through."""

    def __init__(self, config: SparsifyRunConfig, folder: Path, task: SparsifyProblem, runtime: Runtime) -> None:
        self.config, self.folder, self.task, self.runtime = config, folder, task, runtime
        self.started = time.perf_counter()
        settings = config.sparsify
        dense_run = settings.dense_run if settings.rounds else None
        dense_scores = read_scores(Path(dense_run), task.quality) if dense_run else {}
        self.dense: Measured = (copy.deepcopy(task.model), dense_scores)  # what the ticket is compared with
        self.network: Embedder | Classifier = task.model
        self.masks = mask(task.model, settings, task.example[:2], settings.include) if settings.rounds else None
        rounds = [f"round {number + 1}" for number in range(settings.rounds)]
        self.stages = [*rounds, "ticket"] if rounds else ["dense"]
        self.trained = self.network  # by the last stage: the network, or the running mean of its weights
        self.history: list[dict[str, Any]] = []
        self.objective_at_checkpoint: dict[str, Any] | None = None

    def to_the_end(self, saved: dict[str, Any] | None) -> dict[str, Any]:
        """Goes through all stages, or those left in ``saved``, and returns the report."""
        first = 0
        if saved:
            first, self.history = saved["stage"], saved["history"]
            self.objective_at_checkpoint = saved["rewind"]["objective"]
            if self.masks:
                self.masks.saved = self._on_device(saved["rewind"]["network"])
        else:
            self.task.start(self.network)
        for number in range(first, len(self.stages)):
            self._stage(number, saved["train"] if saved and number == first else None)
        return self._finish()

    def _stage(self, number: int, saved: dict[str, Any] | None) -> None:
        stage, settings = self.stages[number], self.config.sparsify
        if stage == "ticket":
            self._enter_ticket()
        state = self._state(number)
        if saved:
            state.load_state_dict(saved)
            total = self.config.train.epochs * self.task.steps_per_epoch
            ranks.print_main(f"resuming {stage} at step {state.step} of {total}")
        self._fit(number, state)
        self.trained = state.final_model
        if self.masks and number + 2 < len(self.stages):  # another round follows
            self.masks.prune(settings.prune_temperature)

    def _enter_ticket(self) -> None:
        assert self.masks is not None
        if self.config.sparsify.rewind_epoch is not None:
            self.masks.rewind()
        if self.objective_at_checkpoint is not None:
            self.task.objective.load_state_dict(self.objective_at_checkpoint)
        for scores in self.masks.mask_parameters():
            scores.requires_grad_(False)
        self.masks.ticket = True
        ranks.print_main(f"ticket: {100 * self.masks.density():.1f} % of the masked weights are kept")

    def _before_epoch(self, number: int, epoch: int) -> None:
        settings, epochs = self.config.sparsify, self.config.train.epochs
        if not self.masks or self.masks.ticket:
            return
        self.masks.temperature = temperature_at(epoch, epochs, settings.final_temp)
        # A run that resumes in this epoch has the checkpoint already.
        if number == 0 and epoch == settings.rewind_epoch and self.masks.saved is None:
            self.masks.checkpoint()
            self.objective_at_checkpoint = copy.deepcopy(self.task.objective.state_dict())

    def _after_epoch(self, number: int, epoch: int, network: nn.Module) -> dict[str, float]:
        numbers = {"density": self.masks.density() if self.masks else 1.0}
        if self.masks and not self.masks.ticket:
            numbers["temperature"] = self.masks.temperature
        if (epoch + 1) % self.config.sparsify.curve_every == 0 or epoch + 1 == self.config.train.epochs:
            numbers["score"] = self.task.curve(network)
        self.history.append({"stage": self.stages[number], "epoch": epoch + 1, **numbers})
        score = f", {self.task.curve_name} {numbers['score']:.4f}" if "score" in numbers else ""
        ranks.print_main(f"{self.stages[number]}, epoch {epoch + 1}: density {numbers['density']:.3f}{score}")
        return numbers

    def _state(self, number: int) -> TrainState:
        config, settings, train = self.config, self.config.sparsify, self.config.train
        searching = self.masks if self.masks and not self.masks.ticket else None
        scores = searching.mask_parameters() if searching else []
        objective = MaskedObjective(
            self.task.objective,
            (lambda: settings.lmbda * searching.penalty()) if searching else None,
            lambda epoch: self._before_epoch(number, epoch),
        )
        groups = groups_with_masks(self.task.groups(self.network), scores, settings, config.optim)
        optimizer = create_optimizer(groups, config.optim)
        network: Any = torch.compile(self.network) if config.run.compile else self.network
        return TrainState(
            # The loop asks a Classifier for no more than it has, as nothing in it can be frozen.
            model=self.network,  # type: ignore[arg-type]
            objective=objective,
            network=network,
            loss_call=objective,
            optimizer=optimizer,
            schedule=create_schedule(optimizer, config.optim, train.epochs, self.task.steps_per_epoch),
            scaler=GradScaler(self.runtime.device.type, enabled=self.runtime.dtype == torch.float16),
            # Masks on the move have no mean worth keeping: only the last stage has one.
            ema=ModelEmaV3(self.network, decay=train.ema, use_warmup=True) if train.ema and not searching else None,
        )

    def _fit(self, number: int, state: TrainState) -> None:
        train = self.config.train
        options = LoopOptions(
            steps_per_epoch=self.task.steps_per_epoch,
            epochs=train.epochs,
            accumulate=train.accumulate,
            clip=self.config.optim.clip,
            frozen=self.config.model.freeze,
            save_every=train.save_every,
        )

        def save() -> None:
            rewind = {"network": self.masks.saved if self.masks else None, "objective": self.objective_at_checkpoint}
            content = {"stage": number, "train": state.state_dict(), "rewind": rewind, "history": self.history}
            path, passed = self.folder / run_folder.STATE, number * train.epochs * self.task.steps_per_epoch
            save_state(path, content)
            keep_states(path, self.folder / run_folder.STATES, passed + state.step, train.keep)

        log_folder = self.folder / run_folder.STAGES / self.stages[number].replace(" ", "-")
        log_folder.mkdir(parents=True, exist_ok=True)
        with MetricLog(log_folder, keep_steps=state.step) as log:
            Loop(
                state,
                options,
                self.runtime,
                log,
                after_epoch=lambda epoch: self._after_epoch(number, epoch, state.final_model),
                save=save,
                name_images=self.task.name_images,
                folder=self.folder,
            ).run(self.task.batches(number, state.step))

    def _finish(self) -> dict[str, Any]:
        task = self.task
        masks = Masks(self.trained) if self.masks else None
        plain = masks.finalize() if masks else self.trained
        scores = task.final(plain)
        layers = masks.layers() if masks else []
        costs, notes = save_and_measure(self.folder, self.config, task, self.runtime, (plain, scores), self.dense)
        write_layers(self.folder, layers)
        write_plot(self.folder, self.history, task.curve_name)
        report: dict[str, Any] = {
            "scores": scores,
            "density": masks.density() if masks else 1.0,
            "overall_density": masks.overall_density() if masks else 1.0,
            "closed_layers": masks.closed_layers() if masks else [],
            "layers": layers,
            "costs": costs,
            "notes": notes,
            "history": self.history,
            "curve": task.curve_name,
            "seed": self.config.run.seed,
            "device": str(self.runtime.device),
            "precision": self.runtime.precision,
            "seconds": round(time.perf_counter() - self.started, 1),
            "versions": run_folder.versions(),
            "machine": run_folder.machine(),
        }
        write_json(self.folder / run_folder.REPORT, report)
        return report

    def _on_device(self, tensors: dict[str, Tensor] | None) -> dict[str, Tensor] | None:
        return tensors and {name: tensor.to(self.runtime.device) for name, tensor in tensors.items()}
