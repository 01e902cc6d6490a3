"""Compatibility of networks with masks: unsupported layers raise an error that names them, before anything changes."""

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.utils._pytree import tree_leaves

from hgsl.common.errors import InputError
from hgsl.sparsity.soft_mask import ChannelMask, SoftMask, owners_of_parameters

# Hooks that replace a parameter by a computed tensor before each forward pass: type to adding and removing function.
_HOOKS = {
    WeightNorm: ("weight_norm", "torch.nn.utils.remove_weight_norm"),
    SpectralNorm: ("spectral_norm", "torch.nn.utils.remove_spectral_norm"),
    BasePruningMethod: ("prune", "torch.nn.utils.prune.remove"),
}


def check_network(model: object) -> None:
    """Checks that the argument ``model`` is a network.

    Raises:
        InputError: It is something else.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"model is of type {type(model).__name__}: expected a network (torch.nn.Module)")


def check_copyable(model: nn.Module) -> None:
    """Checks that a copy of the network can be made, traced and changed.

    Raises:
        InputError: It is no network, or a module is scripted, quantized, lazy or wrapped in DistributedDataParallel, or
            has a weight that a hook computes; it is named.
    """
    check_network(model)
    for name, module in model.named_modules():
        if obstacle := _obstacle(module):
            raise InputError(f"{_label(name, module)} {obstacle}")


def check_plain(model: nn.Module) -> None:
    """Checks that the network is copyable and that none of its parameters is masked or parametrized.

    Raises:
        InputError: A layer is masked, parametrized or cannot be copied; it is named.
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
    """Checks that each of these weights is a plain tensor, which its layers read as an attribute.

    Raises:
        InputError: A weight is that of an LSTM, GRU or RNN, is also held in a list or another attribute that a mask
            does not change, has sparse gradients, or is a tensor subclass.
    """
    owners = owners_of_parameters(model)
    references = _references(model)
    for name in names:
        for layer, _ in owners[name]:
            if isinstance(layer, nn.RNNBase):
                raise InputError(
                    f"{name} cannot be masked, since {type(layer).__name__} reads its weights from a list that masks "
                    f"do not change: exclude it, or build the network with {_cell(layer)}"
                )
            if isinstance(layer, nn.Embedding | nn.EmbeddingBag) and layer.sparse:
                raise InputError(f"{name} cannot be masked with sparse gradients: build the layer with sparse=False")
        parameter = model.get_parameter(name)
        if reference := references.get(id(parameter)):
            raise InputError(f"{name} cannot be masked, since {reference} refers to it too: exclude it, or remove that")
        if type(parameter.data) is not Tensor:
            raise InputError(
                f"{name} is a {type(parameter.data).__name__}, and masks take plain tensors: sparsify the network "
                "before it is quantized or sharded"
            )


def _obstacle(module: nn.Module) -> str | None:
    module_type = f"{type(module).__module__}.{type(module).__name__}"
    if isinstance(module, torch.jit.ScriptModule):
        return "is a TorchScript module, whose weights cannot be replaced: use the network that it was compiled from"
    if isinstance(module, nn.parallel.DistributedDataParallel):
        return "is wrapped in DistributedDataParallel: pass the network inside it (.module), and wrap the result"
    if isinstance(module, LazyModuleMixin) and module.has_uninitialized_params():
        return f"is a {type(module).__name__} without weights yet: run one forward pass first"
    if module_type.startswith(("torch.ao.nn", "torch.nn.quantized")):
        return f"is a quantized layer ({module_type}): use the network before it is quantized"
    for hook in module._forward_pre_hooks.values():
        for hook_type, (function, remover) in _HOOKS.items():
            if isinstance(hook, hook_type):
                tensor = getattr(hook, "name", None) or getattr(hook, "_tensor_name", "weight")
                return f"has {function} on its {tensor}, which recomputes it: remove it first ({remover})"
    return None


def _references(model: nn.Module) -> dict[int, str]:
    """Returns, for each parameter that plain attributes refer to, directly or in a list or dict, one such attribute."""
    references: dict[int, str] = {}
    for name, module in model.named_modules():
        for attribute, value in vars(module).items():
            if attribute in ("_parameters", "_modules") or not isinstance(value, Tensor | list | tuple | dict):
                continue
            for leaf in tree_leaves(value):
                if isinstance(leaf, nn.Parameter):
                    references[id(leaf)] = f"attribute {attribute} of {_label(name, module)}"
    return references


def _cell(layer: nn.RNNBase) -> str:
    """Returns the name of the layer of a single time step, whose weights can be masked."""
    return {"LSTM": "LSTMCell", "GRU": "GRUCell"}.get(layer.mode, "RNNCell")


def _label(name: str, module: nn.Module) -> str:
    return name or type(module).__name__
