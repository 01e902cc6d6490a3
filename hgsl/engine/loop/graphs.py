"""CUDA graphs: a training step captured once and replayed, for networks whose kernels launch more slowly than they run.

The first steps are ordinary ones, on the stream of the later capture: they allocate the optimizer's state and let
libraries choose their kernels. A capture computes nothing, so that nothing has to be undone before the first replay,
and a replay draws from the random generator what the ordinary step would have drawn. What changes from step to step is
read from the device: images, labels, learning rates, the temperature of the masks, the weight of the running mean.
"""

import time
from collections.abc import Callable

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from hgsl.common import ranks
from hgsl.common.cuda_graphs import beside, capture
from hgsl.common.errors import first_line
from hgsl.engine.loop.step import update_parameters
from hgsl.engine.loop.train_state import Batch, LoopOptions, TrainState
from hgsl.engine.parts.optim import skips_on_device
from hgsl.engine.runtime import Runtime
from hgsl.losses import HardGlobalSoftminLoss

StepFunction = Callable[[TrainState, Batch, LoopOptions, Runtime], Tensor]

ORDINARY_STEPS = 3
LAUNCH_SHARE = 0.7  # share of a step that the host needs to launch it, from which "auto" captures


def step_function(ordinary: StepFunction, state: TrainState, options: LoopOptions, runtime: Runtime) -> StepFunction:
    """Returns a step that replays a CUDA graph, or ``ordinary`` with a note where it cannot be captured."""
    if options.cuda_graphs == "off":
        return ordinary
    if obstacle := capture_obstacle(state, runtime):
        _note(obstacle)
        return ordinary
    return GraphedStep(ordinary, state, options, runtime)


def capture_obstacle(state: TrainState, runtime: Runtime) -> str | None:
    """Returns why the steps of ``state`` cannot be captured, or None."""
    loss = state.objective.loss_fn
    fixed_shapes = isinstance(loss, HardGlobalSoftminLoss | nn.CrossEntropyLoss)
    checkpointed = any(getattr(module, "grad_checkpointing", False) for module in state.model.modules())
    obstacles = {
        f"the device is {runtime.device.type}": runtime.device.type != "cuda",
        "several processes exchange gradients": ranks.world_size() > 1,
        "the gradient scaler of float16 reads from the GPU": state.scaler.is_enabled(),
        "the teacher's embeddings are read on the host": state.teacher is not None,
        "the centers have sparse gradients": getattr(loss, "sparse_grad", False),
        f"{type(loss).__name__} may read from the GPU": not fixed_shapes,
        "run.compile captures the network by itself": hasattr(state.network, "_orig_mod"),
        "model.checkpointing restores random states": checkpointed,
        "the optimizer is not fused": not skips_on_device(state.optimizer),
    }
    return next((reason for reason, holds in obstacles.items() if holds), None)


class GraphedStep:
    """A training step that replays a CUDA graph, with the arguments and the result of the ordinary one."""

    def __init__(self, ordinary: StepFunction, state: TrainState, options: LoopOptions, runtime: Runtime) -> None:
        self.ordinary, self.options = ordinary, options
        self.stream = torch.cuda.Stream(runtime.device) if runtime.device.type == "cuda" else None
        self.ordinary_steps, self.gave_up = 0, False
        self.replay: Callable[[], None] | None = None
        self.key: tuple[object, ...] = ()
        if isinstance(state.objective.loss_fn, HardGlobalSoftminLoss):
            state.objective.loss_fn.cuda_graphs = False  # it is part of the graph of the step
        _move_rates(state, runtime.device)

    def __call__(self, state: TrainState, batch: Batch, options: LoopOptions, runtime: Runtime) -> Tensor:
        if self.gave_up:
            return self.ordinary(state, batch, self.options, runtime)
        if self.ordinary_steps < ORDINARY_STEPS:
            return self._ordinary_step(state, batch, runtime)
        if self.key != (key := _key(state, batch)):
            self.replay = None  # frees the memory of the graph before
            try:
                self._capture(state, batch, runtime)
            except (RuntimeError, ValueError, TypeError) as error:
                self._give_up(f"a step cannot be captured ({first_line(error)})")
                return self.ordinary(state, batch, self.options, runtime)
            self.key = key
        assert self.replay is not None
        self.images.copy_(batch[0], non_blocking=True)
        self.labels.copy_(batch[1], non_blocking=True)
        if state.ema:
            self.mean_weight.fill_(1.0 - state.ema.get_decay(state.step))
        self.replay()
        return self.numbers.clone()

    def _ordinary_step(self, state: TrainState, batch: Batch, runtime: Runtime) -> Tensor:
        """Takes one of the first steps on the stream of the capture; the last of them is timed for ``auto``."""
        self.ordinary_steps += 1
        timed = self.options.cuda_graphs == "auto" and self.ordinary_steps == ORDINARY_STEPS
        if timed:
            torch.cuda.synchronize(runtime.device)
        started = time.perf_counter()
        with beside(self.stream):
            numbers = self.ordinary(state, batch, self.options, runtime)
        if timed:
            launched = time.perf_counter() - started
            torch.cuda.synchronize(runtime.device)
            share = launched / (time.perf_counter() - started)
            if share < LAUNCH_SHARE:
                self._give_up(f"launching takes only {100 * share:.0f} % of a step")
        return numbers.clone()

    def _capture(self, state: TrainState, batch: Batch, runtime: Runtime) -> None:
        images, labels, ids = batch
        self.images = torch.empty_like(images, device=runtime.device)
        self.labels = torch.empty_like(labels, device=runtime.device)
        self.mean_weight = torch.zeros((), device=runtime.device)

        def step() -> None:
            self.numbers = update_parameters(state, (self.images, self.labels, ids), self.options, runtime)
            if state.ema:
                average_weights(state.ema, state.model, self.mean_weight)

        state.optimizer.zero_grad(set_to_none=True)  # so that the backward pass allocates gradients in the graph
        self.replay = capture(step, self.stream)

    def _give_up(self, reason: str) -> None:
        self.gave_up = True
        _note(reason)


@torch.no_grad()
def average_weights(ema: ModelEmaV3, model: nn.Module, weight: Tensor) -> None:
    """Updates the running mean as ``ema.update`` does, with the weight of the model read from the device.

    Args:
        ema: The running mean, in the dtype of the model.
        model: The model.
        weight: ``()``, one minus the decay of this step.
    """
    pairs = list(zip(ema.module.state_dict().values(), model.state_dict().values(), strict=True))
    means = [mean for mean, value in pairs if mean.is_floating_point()]
    values = [value for mean, value in pairs if mean.is_floating_point()]
    steps = torch._foreach_sub(values, means)
    torch._foreach_mul_(steps, weight)
    torch._foreach_add_(means, steps)
    for mean, value in pairs:
        if not mean.is_floating_point():
            mean.copy_(value)


def _key(state: TrainState, batch: Batch) -> tuple[object, ...]:
    """What a graph has fixed: shapes, and the settings of the loss that a schedule changes."""
    images, labels, _ = batch
    top_k = getattr(state.objective.loss_fn, "top_k", None)
    return images.shape, images.dtype, images.stride(), labels.shape, top_k


def _move_rates(state: TrainState, device: torch.device) -> None:
    """Puts the learning rates on the device, where the schedule changes them in place and a graph reads them."""
    for group in state.optimizer.param_groups:
        group["lr"] = torch.tensor(float(group["lr"]), dtype=torch.float32, device=device)
        if "capturable" in group:
            group["capturable"] = True


def _note(reason: str) -> None:
    ranks.print_main(f"note: no CUDA graph, every step is launched by itself: {reason}")
