"""A physically smaller network: closed channels are taken out of every tensor that holds them."""

import copy
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from hgsl.common.errors import InputError
from hgsl.sparsity.channel_flow import removable
from hgsl.sparsity.channel_graph import ChannelGraph
from hgsl.sparsity.channel_trace import example_input, trace
from hgsl.sparsity.masks import Masks
from hgsl.sparsity.soft_mask import SoftMask


def compact(model: nn.Module, example: Tensor | None = None) -> nn.Module:
    """Returns a plain network without the channels that are closed; in evaluation mode its output is the same.

    A channel goes if it is zero whatever the input, or if nothing that reaches the output uses it, at every place that
    is tied to it: through residual sums, depthwise convolutions, batch norm, squeeze-and-excite gates and linear heads.
    The zeros can come from channel masks or be all-zero filters; what a batch norm shifts away from zero stays, and so
    does everything that a LayerNorm sees. Where a layer is closed fully one of its channels is kept.

    Args:
        model: A ticket (``masks.ticket`` set), or a plain network with exact zeros. It is not changed.
        example: An input for tracing, ``(B, ...)``, B at least 2; None makes images of the model's own size.

    Raises:
        InputError: The masks are soft, the network cannot be traced, or it depends on its channel counts in a way
            that the trace does not show (a literal size in a reshape).
    """
    plain = _plain(model)
    example = example_input(plain, example)
    modes = {name: part.training for name, part in plain.named_modules()}
    plain.eval()
    graph = trace(plain, example)
    values = tensors_of(plain)
    keep = _kept(graph, ~removable(graph, values))
    expected = _exact_output(plain, example)
    _resize(plain, {id(values[name]): _picker(axes, keep) for name, axes in graph.claims.items()})
    _check(plain, example, expected)
    for name, part in plain.named_modules():
        part.training = modes[name]
    return plain


def shrink_to(model: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Cuts parameters and buffers of ``model`` to ``shapes``, in place, so that a compacted state dict fits it.

    Args:
        model: The plain network before it was compacted.
        shapes: Parameter or buffer name to its shape; axes at most as long as the model's.
    """
    cut = {
        id(tensor): (lambda t, shape=shapes[name]: t[tuple(slice(size) for size in shape)].clone())
        for name, tensor in tensors_of(model).items()
        if name in shapes and tuple(tensor.shape) != tuple(shapes[name])
    }
    _resize(model, cut)


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Returns all parameters and buffers by name, a shared one under each of its names."""
    return {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers(remove_duplicate=False))}


def _plain(model: nn.Module) -> nn.Module:
    if not any(isinstance(part, SoftMask) for part in model.modules()):
        return copy.deepcopy(model)
    masks = Masks(model)
    if not masks.ticket:
        raise InputError("compact needs a ticket, and these masks are soft: set masks.ticket = True first")
    return masks.finalize()


def _kept(graph: ChannelGraph, alive: np.ndarray) -> np.ndarray:
    """Returns which groups stay: those alive, and one where a tensor would be left with nothing."""
    keep = alive.copy()
    for name, axes in graph.claims.items():
        for axis, groups in axes.items():
            if not alive[groups].any():
                keep[groups[0]] = True
                if axis == 0 and any(step.kind == "dense" and step.weight == name for step in graph.steps):
                    warnings.warn(f"{name} is closed fully: one channel of it is kept", stacklevel=3)
    return keep


def _picker(axes: dict[int, np.ndarray], keep: np.ndarray) -> Callable[[Tensor], Tensor]:
    def pick(tensor: Tensor) -> Tensor:
        for axis, groups in axes.items():
            tensor = tensor.index_select(axis, torch.from_numpy(np.flatnonzero(keep[groups])).to(tensor.device))
        return tensor

    return pick


def _resize(model: nn.Module, change: Mapping[int, Callable[[Tensor], Tensor]]) -> None:
    """Replaces each tensor whose id is in ``change``, wherever it is used, and corrects the sizes its layer states."""
    made: dict[int, Tensor] = {}  # a tensor that several layers share stays shared
    for layer in model.modules():
        stores: tuple[dict[str, Any], dict[str, Any]] = (layer._parameters, layer._buffers)
        for tensors in stores:
            for name, tensor in tensors.items():
                if tensor is None or id(tensor) not in change:
                    continue
                if id(tensor) not in made:
                    smaller = change[id(tensor)](tensor.detach())
                    is_parameter = isinstance(tensor, nn.Parameter)
                    made[id(tensor)] = nn.Parameter(smaller, tensor.requires_grad) if is_parameter else smaller
                tensors[name] = made[id(tensor)]
        _restate(layer)


def _restate(layer: nn.Module) -> None:
    """Makes the sizes that a layer states about itself those of its weight."""
    if isinstance(layer, _ConvNd) and not layer.transposed:
        if layer.groups > 1 and layer.groups == layer.in_channels == layer.out_channels:
            layer.groups = layer.weight.shape[0]
        layer.out_channels, layer.in_channels = layer.weight.shape[0], layer.weight.shape[1] * layer.groups
    elif isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = layer.weight.shape
    elif isinstance(layer, _NormBase) and layer.running_mean is not None:
        layer.num_features = layer.running_mean.shape[0]


@torch.no_grad()
def _exact_output(model: nn.Module, example: Tensor) -> Tensor:
    """Computes in float64, so that a difference is a mistake and not the order of a sum."""
    return copy.deepcopy(model).cpu().double()(example.cpu().double())


def _check(small: nn.Module, example: Tensor, expected: Tensor) -> None:
    way_out = "exclude the layers whose channel count its forward depends on"
    try:
        found = _exact_output(small, example)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{type(small).__name__} fails without its closed channels ({reason}): {way_out}") from error
    gap = float((found - expected).abs().max())
    if gap > 1e-6 * max(1.0, float(expected.abs().max())):
        raise InputError(f"{type(small).__name__} is off by {gap:.2g} without its closed channels: {way_out}")
