"""Construction of the state that a stage of training changes."""

import torch
from timm.utils import ModelEmaV3
from torch import nn
from torch.amp import GradScaler
from torch.nn.parallel import DistributedDataParallel

from hgsl.common import ranks
from hgsl.config import Config
from hgsl.engine.loop.train_state import TrainState
from hgsl.engine.parts.masking import MaskedObjective, groups_with_masks
from hgsl.engine.parts.objective import Objective
from hgsl.engine.parts.optim import build_optimizer, create_schedule
from hgsl.engine.parts.shards import sharded_loss
from hgsl.engine.problem import Problem
from hgsl.engine.runtime import Runtime
from hgsl.engine.stages import Stage
from hgsl.sparsity import Masks


def build_state(
    config: Config, problem: Problem, stage: Stage, runtime: Runtime, masks: Masks | None = None
) -> TrainState:
    """Builds optimizer, schedule, scaler and running mean of a stage, for one process or several.

    Args:
        config: The settings of optimizer, masks and compilation.
        problem: The model and its training.
        stage: The stage, with its epochs and the mode of its masks.
        runtime: Device and precision.
        masks: The masks on the problem's model, if it has any.
    """
    soft_masks = masks if stage.masks == "soft" else None
    scores = soft_masks.mask_parameters() if soft_masks else []
    groups = groups_with_masks(problem.groups(), scores, config.sparsify, config.optim)
    objective: Objective | MaskedObjective = problem.objective
    if soft_masks:
        calls = stage.epochs * problem.steps_per_epoch * config.train.accumulate
        objective = MaskedObjective(problem.objective, soft_masks, config.sparsify, calls)
    optimizer = build_optimizer(groups, config.optim, problem.objective)
    network = problem.network
    if config.run.compile:
        network = torch.compile(network)  # type: ignore[assignment]
    return TrainState(
        model=problem.model,
        objective=objective,
        network=wrap_ddp(network, runtime),
        loss_call=objective if sharded_loss(objective) else wrap_ddp(objective, runtime),
        optimizer=optimizer,
        schedule=create_schedule(optimizer, config.optim, stage.epochs, problem.steps_per_epoch),
        scaler=GradScaler(runtime.device.type, enabled=runtime.dtype == torch.float16),
        ema=ModelEmaV3(problem.model, decay=stage.ema, use_warmup=True) if stage.ema else None,
        teacher=problem.teacher,
    )


def wrap_ddp(module: nn.Module, runtime: Runtime) -> nn.Module:
    """Wraps a module in DistributedDataParallel, unless there is one process or no trainable parameter."""
    if ranks.world_size() == 1 or not any(parameter.requires_grad for parameter in module.parameters()):
        return module
    devices = [runtime.device] if runtime.device.type == "cuda" else None
    # By default every step starts with the batch-norm statistics of the first process, which are the saved ones.
    return DistributedDataParallel(module, device_ids=devices)
