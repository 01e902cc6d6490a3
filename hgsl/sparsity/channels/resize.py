"""Replacement of the parameters and buffers of a network by smaller ones."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Returns all parameters and buffers by name, a shared one under each of its names."""
    return {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers(remove_duplicate=False))}


def replace_tensors(model: nn.Module, functions: Mapping[int, Callable[[Tensor], Tensor]]) -> None:
    """Replaces each parameter and buffer ``t`` by ``functions[id(t)](t)`` wherever it is used.

    Size attributes of the layers (``out_channels``, ``num_features``) are updated to the new tensors.
    """
    replacements: dict[int, Tensor] = {}  # a tensor that several layers share stays shared
    for layer in model.modules():
        stores: tuple[dict[str, Any], dict[str, Any]] = (layer._parameters, layer._buffers)
        for tensors in stores:
            for name, tensor in tensors.items():
                if tensor is None or id(tensor) not in functions:
                    continue
                if id(tensor) not in replacements:
                    replacements[id(tensor)] = _like(tensor, functions[id(tensor)](tensor.detach()))
                tensors[name] = replacements[id(tensor)]
        _update_sizes(layer)


def shrink_to(model: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Cuts parameters and buffers of ``model`` to ``shapes``, in place, so that a compacted state dict fits it.

    Args:
        model: The plain network before it was compacted.
        shapes: Parameter or buffer name to its shape; axes at most as long as the model's.
    """
    functions = {
        id(tensor): (lambda t, shape=shapes[name]: t[tuple(slice(size) for size in shape)].clone())
        for name, tensor in tensors_of(model).items()
        if name in shapes and tuple(tensor.shape) != tuple(shapes[name])
    }
    replace_tensors(model, functions)


def _like(tensor: Tensor, value: Tensor) -> Tensor:
    """Returns ``value`` as a parameter if ``tensor`` is one."""
    return nn.Parameter(value, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else value


def _update_sizes(layer: nn.Module) -> None:
    if isinstance(layer, _ConvNd) and not layer.transposed:
        if layer.groups > 1 and layer.groups == layer.in_channels == layer.out_channels:
            layer.groups = layer.weight.shape[0]
        layer.out_channels, layer.in_channels = layer.weight.shape[0], layer.weight.shape[1] * layer.groups
    elif isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = layer.weight.shape
    elif isinstance(layer, _NormBase) and layer.running_mean is not None:
        layer.num_features = layer.running_mean.shape[0]
    elif isinstance(layer, nn.PReLU):
        layer.num_parameters = layer.weight.shape[0]
