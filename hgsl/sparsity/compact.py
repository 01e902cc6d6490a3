"""A physically smaller network: closed channels are taken out of every tensor that holds them."""

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.utils._pytree import tree_leaves

from hgsl.common.errors import InputError, first_line
from hgsl.common.modules import evaluation_mode
from hgsl.sparsity.channels.flow import removable
from hgsl.sparsity.channels.graph import ChannelGraph
from hgsl.sparsity.channels.masks import ChannelGroup
from hgsl.sparsity.channels.trace import example_input, trace
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
    with evaluation_mode(plain):
        graph = trace(plain, example)
        take_out(plain, graph, removable(graph, tensors_of(plain)), example)
    return plain


def take_out(plain: nn.Module, graph: ChannelGraph, closed: np.ndarray, example: Tensor) -> None:
    """Takes closed channels out of ``plain``, in place, and compares its output with what it was.

    Args:
        plain: A network in evaluation mode.
        graph: Its channels.
        closed: Which groups of tied channels are closed, ``(groups,)`` bool.
        example: An input.

    Raises:
        InputError: The network fails without these channels, or computes something else.
    """
    keep = _kept(graph, ~closed)
    dtype, expected = _reference(plain, example)
    values = tensors_of(plain)
    _resize(plain, {id(values[name]): _picker(axes, keep) for name, axes in graph.claims.items()})
    _check(plain, example, dtype, expected)


def try_removal(plain: nn.Module, graph: ChannelGraph, groups: Sequence[ChannelGroup], example: Tensor) -> None:
    """Takes one channel of each group out of a copy of ``plain``, so that no search ends where it cannot be cut.

    Args:
        plain: A network in evaluation mode.
        graph: Its channels.
        groups: The channels that masks are to close.
        example: An input.

    Raises:
        InputError: The network depends on a channel in a way that the graph does not show; its layers are named.
    """
    try:
        _remove_first(plain, graph, groups, example)
    except InputError as together:
        culprits, reason = [], together
        for group in groups:
            try:
                _remove_first(plain, graph, [group], example)
            except InputError as alone:
                culprits += [name.removesuffix(".weight") for name in group.weights]
                reason = alone
        whose = ", ".join(culprits) or "the selected layers"
        raise InputError(f"channels of {whose} cannot be taken out: {reason}") from reason


def _remove_first(plain: nn.Module, graph: ChannelGraph, groups: Sequence[ChannelGroup], example: Tensor) -> None:
    trial = copy.deepcopy(plain)
    tensors = tensors_of(trial)
    closed = np.zeros(graph.groups, bool)
    for group in groups:
        closed[group.atoms[0]] = True
        for name, index in (group.weights | group.followers).items():
            tensors[name].detach()[torch.from_numpy(index == 0)] = 0.0
    take_out(trial, graph, closed, example)


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


def tensors_in(returned: object) -> list[Tensor]:
    """Returns the tensors in what a network returned: one, or a tuple or dict of them."""
    return [leaf for leaf in tree_leaves(returned) if isinstance(leaf, Tensor)]


@torch.no_grad()
def _outputs(model: nn.Module, example: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """Computes all tensors that ``model`` returns, in ``dtype``, on a copy."""
    x = example.cpu()
    return tensors_in(copy.deepcopy(model).cpu().to(dtype)(x.to(dtype) if x.is_floating_point() else x))


def _reference(model: nn.Module, example: Tensor) -> tuple[torch.dtype, list[Tensor]]:
    """Computes in float64, so that a difference is a mistake and not the order of a sum, unless a forward casts."""
    try:
        return torch.float64, _outputs(model, example, torch.float64)
    except RuntimeError:
        try:
            return torch.float32, _outputs(model, example, torch.float32)
        except RuntimeError as error:
            raise InputError(
                f"{type(model).__name__} runs neither in float64 nor in float32 on the CPU ({first_line(error)}), "
                "which it must for a comparison without its closed channels"
            ) from error


def _check(small: nn.Module, example: Tensor, dtype: torch.dtype, expected: list[Tensor]) -> None:
    way_out = "leave the layers whose channel count its forward depends on unmasked (sparsify's exclude)"
    kind = type(small).__name__
    try:
        found = _outputs(small, example, dtype)
        gaps = [_gap(a, b) for a, b in zip(found, expected, strict=True)]
    except Exception as error:  # whatever a forward raises: an assertion about its channels, an index
        raise InputError(f"{kind} fails without its closed channels ({first_line(error)}): {way_out}") from error
    if not all(bool(value.isfinite().all()) for value in expected):
        raise InputError(
            f"{kind} gives numbers that are not finite for this example: pass another, or mend its weights"
        )
    tolerance = 1e-6 if dtype == torch.float64 else 1e-4
    for gap in gaps:
        if not gap <= tolerance:  # not "gap > tolerance", which is false of NaN
            raise InputError(f"{kind} is off by {gap:.2g} without its closed channels: {way_out}")


def _gap(found: Tensor, expected: Tensor) -> float:
    """Returns the largest difference, relative to the largest entry if that is above one."""
    if found.shape != expected.shape:
        raise ValueError(f"an output of shape {tuple(expected.shape)} becomes {tuple(found.shape)}")
    if expected.numel() == 0:
        return 0.0
    difference = (found.double() - expected.double()).abs().max() / expected.double().abs().max().clamp(min=1.0)
    return float(difference)
