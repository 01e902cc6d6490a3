"""Low-rank adapters (LoRA) of the linear layers of a backbone, through peft; merged, the model needs no peft."""

import copy
import math
from collections.abc import Sequence

import torch
from torch import nn

from hgsl.common.errors import InputError
from hgsl.common.extras import require
from hgsl.common.modules import evaluation_mode
from hgsl.models.embedder import Embedder


def add_lora(model: Embedder, rank: int, alpha: float, targets: str | Sequence[str] = "auto") -> list[str]:
    """Adds an adapter to linear layers of the backbone in place, and freezes all else of the backbone.

    A layer computes W x + (alpha / rank) B A x, with A of ``rank`` rows and B of as many columns; B starts at zero, so
    that the outputs do not change at first.

    Args:
        model: The model.
        rank: Rank of the adapters.
        alpha: Numerator of their scale.
        targets: ``auto`` for every linear layer that the backbone calls; or the end of layer names, such as ``qkv``, or
            several.

    Returns:
        The names of the layers.

    Raises:
        InputError: peft is not installed, ``alpha`` is not positive and finite, or there is no such layer.
    """
    if not 0 < alpha < math.inf:
        raise InputError(f"alpha of the adapters must be positive and finite, found {alpha}")
    require("lora", "model.lora")
    from peft import LoraConfig, inject_adapter_in_model

    called = _called_linear_layers(model)
    ends = [] if targets == "auto" else [targets] if isinstance(targets, str) else list(targets)
    names = [name for name in called if not ends or any(f".{name}".endswith(f".{end}") for end in ends)]
    if not names:
        example = f", such as {called[-1]!r}" if called else ""
        raise InputError(
            f"model.lora.targets {targets!r} match none of the {len(called)} linear layers that backbone "
            f"{model.architecture['backbone']!r} calls{example}: use auto, or set model.lora.rank 0"
        )
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=names, lora_dropout=0.0, bias="none")
    inject_adapter_in_model(config, model.backbone)
    for name, parameter in model.backbone.named_parameters():
        parameter.requires_grad_(".lora_" in name)
    return names


def merge_lora(model: Embedder) -> Embedder:
    """Returns a copy of the model with the adapters added to the weights, or the model itself if it has none."""
    if not any(hasattr(module, "lora_A") for module in model.modules()):
        return model
    merged = copy.deepcopy(model)
    adapted = {name: module for name, module in merged.backbone.named_modules() if hasattr(module, "lora_A")}
    for name, layer in adapted.items():
        layer.merge()
        parent, _, attribute = name.rpartition(".")
        setattr(merged.backbone.get_submodule(parent), attribute, layer.base_layer)
    return merged


def _called_linear_layers(model: Embedder) -> list[str]:
    """Names of the linear layers whose forward runs; some families read the weights of others, past an adapter."""
    called: set[str] = set()
    layers = {name: module for name, module in model.backbone.named_modules() if type(module) is nn.Linear}
    hooks = [module.register_forward_hook(lambda *_, name=name: called.add(name)) for name, module in layers.items()]
    side, device = model.data_config["image_size"], next(model.parameters()).device
    with evaluation_mode(model), torch.inference_mode():
        model(torch.zeros(1, 3, side, side, device=device))
    for hook in hooks:
        hook.remove()
    return [name for name in layers if name in called]
