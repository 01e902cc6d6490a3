"""Compatibility of networks with masks: what masks do not support is refused by name before anything changes."""

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from hgsl.common.errors import InputError
from hgsl.sparsity.soft_mask import ChannelMask, SoftMask, owners_of_parameters

# Hooks that replace a parameter by a computed tensor before each forward pass: type to adding and removing function.
_HOOKS = {
    WeightNorm: ("weight_norm", "torch.nn.utils.remove_weight_norm"),
    SpectralNorm: ("spectral_norm", "torch.nn.utils.remove_spectral_norm"),
    BasePruningMethod: ("prune", "torch.nn.utils.prune.remove"),
}


def check_copyable(model: nn.Module) -> None:
    """Checks that a copy of the network can be made, traced and changed.

    Raises:
        InputError: A module is scripted, quantized or lazy, has a weight that a hook computes, or synchronizes
            processes; it is named.
    """
    for name, module in model.named_modules():
        if obstacle := _obstacle(module):
            raise InputError(f"{_label(name, module)} {obstacle}")


def check_plain(model: nn.Module) -> None:
    """Checks that the network is copyable and that none of its parameters is masked or parametrized.

    Raises:
        InputError: It is not; the layer is named.
    """
    check_copyable(model)
    for name, module in model.named_modules():
        if not parametrize.is_parametrized(module):
            continue
        chains: Any = module.parametrizations
        for tensor, chain in chains.items():
            if isinstance(chain[0], SoftMask | ChannelMask):
                raise InputError(
                    f"{_label(name, module)} is masked already: sparsify the network that masks.finalize() returns"
                )
            raise InputError(
                f"{_label(name, module)} is parametrized already ({tensor} by {type(chain[0]).__name__}): remove the "
                "parametrization first (torch.nn.utils.parametrize.remove_parametrizations)"
            )


def check_values(model: nn.Module) -> None:
    """Checks that the parameters have values, which the removal of channels needs.

    Raises:
        InputError: One is on the meta device.
    """
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            raise InputError(
                f"{name} is on the meta device and has no values: load the weights before removing channels"
            )


def check_weights(model: nn.Module, names: Collection[str]) -> None:
    """Checks that the layers that hold these weights read them in a way that masks reach.

    Raises:
        InputError: A weight is that of an LSTM, GRU or RNN, has sparse gradients, or is a tensor subclass.
    """
    owners = owners_of_parameters(model)
    for name in names:
        for layer, _ in owners[name]:
            if isinstance(layer, nn.RNNBase):
                raise InputError(
                    f"{name} cannot be masked: an {type(layer).__name__} passes its weights to one fused operator, "
                    f"which masks do not reach. Exclude it, or build the network with {_cell(layer)}"
                )
            if isinstance(layer, nn.Embedding | nn.EmbeddingBag) and layer.sparse:
                raise InputError(f"{name} cannot be masked with sparse gradients: build the layer with sparse=False")
        value = model.get_parameter(name).data
        if type(value) is not Tensor:
            raise InputError(
                f"{name} is a {type(value).__name__}, and masks take plain tensors: sparsify the network before it is "
                "quantized or sharded"
            )


def _obstacle(module: nn.Module) -> str | None:
    kind = type(module)
    if isinstance(module, torch.jit.ScriptModule):
        return "is a TorchScript module, whose weights cannot be replaced: use the network that it was compiled from"
    if isinstance(module, nn.parallel.DistributedDataParallel):
        return "is wrapped in DistributedDataParallel, which would not synchronize the masks: wrap it afterwards"
    if isinstance(module, LazyModuleMixin) and module.has_uninitialized_params():
        return f"is a {kind.__name__} without weights yet: run one forward pass first"
    if kind.__module__.startswith(("torch.ao.nn", "torch.nn.quantized")):
        return f"is a quantized layer ({kind.__module__}.{kind.__name__}): use the network before it is quantized"
    for hook in module._forward_pre_hooks.values():
        for hook_type, (function, remover) in _HOOKS.items():
            if isinstance(hook, hook_type):
                tensor = getattr(hook, "name", None) or getattr(hook, "_tensor_name", "weight")
                return f"has {function} on its {tensor}, which recomputes it: remove it first ({remover})"
    return None


def _cell(layer: nn.RNNBase) -> str:
    """Returns the name of the layer of a single time step, whose weights can be masked."""
    return {"LSTM": "LSTMCell", "GRU": "GRUCell"}.get(layer.mode, "RNNCell")


def _label(name: str, module: nn.Module) -> str:
    return name or type(module).__name__
