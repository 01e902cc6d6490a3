"""Builds the state that training changes."""

import torch
from timm.utils import ModelEmaV3
from torch import nn
from torch.amp import GradScaler
from torch.nn.parallel import DistributedDataParallel

from hgsl.common import ranks
from hgsl.config import Config
from hgsl.engine.loop.loop import TrainState
from hgsl.engine.parts.build import Runtime
from hgsl.engine.parts.freeze import freeze
from hgsl.engine.parts.head import Head
from hgsl.engine.parts.masking import MaskedObjective, groups_with_masks, with_masks
from hgsl.engine.parts.objective import Objective, build_objective
from hgsl.engine.parts.optim import create_optimizer, create_schedule, parameter_groups
from hgsl.engine.parts.shards import sharded_loss
from hgsl.models import Embedder
from hgsl.sparsity import Masks


def build_state(
    config: Config,
    model: Embedder,
    num_classes: int,
    steps_per_epoch: int,
    runtime: Runtime,
    masks: Masks | None = None,
) -> TrainState:
    """Builds objective, optimizer, schedule and scaler around ``model``, for one process or several."""
    objective: Objective | MaskedObjective
    objective = build_objective(config.loss, num_classes, model.embedding_size).to(runtime.device)
    if config.train.mode == "head":
        freeze(model, "features")
    groups = parameter_groups(model, objective, config.optim)
    if masks:
        groups = groups_with_masks(groups, masks.mask_parameters(), config.sparsify, config.optim)
        objective = with_masks(objective, masks, config.sparsify, config.train.epochs)
    optimizer = create_optimizer(groups, config.optim)
    network: nn.Module = Head(model) if config.train.mode == "head" else model
    if config.run.compile:
        network = torch.compile(network)  # type: ignore[assignment]
    return TrainState(
        model=model,
        objective=objective,
        network=wrap_ddp(network, runtime),
        loss_call=objective if sharded_loss(objective) else wrap_ddp(objective, runtime),
        optimizer=optimizer,
        schedule=create_schedule(optimizer, config.optim, config.train.epochs, steps_per_epoch),
        scaler=GradScaler(runtime.device.type, enabled=runtime.dtype == torch.float16),
        ema=ModelEmaV3(model, decay=config.train.ema, use_warmup=True) if config.train.ema else None,
    )


def wrap_ddp(module: nn.Module, runtime: Runtime) -> nn.Module:
    """With several processes, a module whose gradients are the mean over them; frozen ones have none to average."""
    if ranks.world_size() == 1 or not any(parameter.requires_grad for parameter in module.parameters()):
        return module
    devices = [runtime.device] if runtime.device.type == "cuda" else None
    # Every step starts with the first process's statistics of batch norms, which are those that are saved.
    return DistributedDataParallel(module, device_ids=devices, broadcast_buffers=True)
