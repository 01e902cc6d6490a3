"""Builds the state that training changes."""

import torch
from timm.utils import ModelEmaV3
from torch import nn
from torch.amp import GradScaler
from torch.nn.parallel import DistributedDataParallel

from hgsl.common import ranks
from hgsl.config import Config
from hgsl.engine.build import Place
from hgsl.engine.freeze import freeze
from hgsl.engine.head import Head
from hgsl.engine.loop import TrainState
from hgsl.engine.masking import MaskedObjective, groups_with_masks, with_masks
from hgsl.engine.objective import Objective, build_objective
from hgsl.engine.optim import create_optimizer, create_schedule, parameter_groups
from hgsl.engine.shards import sharded_loss
from hgsl.models import Embedder
from hgsl.sparsity import Masks


def build_state(
    config: Config,
    model: Embedder,
    num_classes: int,
    steps_per_epoch: int,
    place: Place,
    masks: Masks | None = None,
) -> TrainState:
    """Builds objective, optimiser, schedule and scaler around ``model``, for one process or several."""
    objective: Objective | MaskedObjective
    objective = build_objective(config.loss, num_classes, model.embedding_size).to(place.device)
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
        network=_averaged(network, place),
        loss_call=objective if sharded_loss(objective) else _averaged(objective, place),
        optimizer=optimizer,
        schedule=create_schedule(optimizer, config.optim, config.train.epochs, steps_per_epoch),
        scaler=GradScaler(place.device.type, enabled=place.dtype == torch.float16),
        ema=ModelEmaV3(model, decay=config.train.ema, use_warmup=True) if config.train.ema else None,
    )


def _averaged(module: nn.Module, place: Place) -> nn.Module:
    """With several processes, a module whose gradients are the mean over them; frozen ones have none to average."""
    if ranks.world_size() == 1 or not any(parameter.requires_grad for parameter in module.parameters()):
        return module
    devices = [place.device] if place.device.type == "cuda" else None
    # Every step starts with the first process's statistics of batch norms, which are those that are saved.
    return DistributedDataParallel(module, device_ids=devices, broadcast_buffers=True)
