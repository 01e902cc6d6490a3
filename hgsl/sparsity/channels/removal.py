"""Removal of dependency groups from a network, checked against the output before."""

import copy
import warnings
from collections.abc import Callable, Collection, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from hgsl.common.errors import InputError
from hgsl.sparsity.channels.equivalence import check_output, reference_output
from hgsl.sparsity.channels.graph import ChannelGraph
from hgsl.sparsity.channels.groups import ChannelGroup, channel_groups
from hgsl.sparsity.channels.resize import replace_tensors, tensors_of
from hgsl.sparsity.channels.trace import trace
from hgsl.sparsity.compatibility import check_values


def remove_groups(plain: nn.Module, graph: ChannelGraph, closed: np.ndarray, example: Tensor) -> None:
    """Removes closed dependency groups from ``plain``, in place, and checks that its output stays the same.

    Args:
        plain: A network in evaluation mode.
        graph: Its channels.
        closed: Which dependency groups are closed, ``(groups,)`` bool.
        example: An input.

    Raises:
        InputError: The network fails without these channels, or its output changes.
    """
    remaining = _remaining(graph, ~closed)
    dtype, expected = reference_output(plain, example)
    tensors = tensors_of(plain)
    replace_tensors(plain, {id(tensors[name]): _slicer(axes, remaining) for name, axes in graph.tensor_ids.items()})
    check_output(plain, example, dtype, expected)


def removable_groups(
    model: nn.Module, selected: Collection[str], example: Tensor
) -> tuple[ChannelGraph, list[ChannelGroup]]:
    """Returns the channels of a network and the channel groups of the ``selected`` weights.

    As a check, one channel of each group has been removed from a copy.

    Args:
        model: A plain network.
        selected: Names of the weights that may be masked.
        example: An input.

    Raises:
        InputError: There are no such groups, the network cannot be traced, or it depends on a channel in a way that
            the trace does not show; the layers are named.
    """
    check_values(model)
    # Traced in evaluation mode, where dropout and stochastic depth do nothing.
    plain = copy.deepcopy(model).eval()
    graph = trace(plain, example)
    groups = channel_groups(graph, tensors_of(plain), selected)
    if not groups:
        raise InputError("nothing left to mask: no channel of the selected layers can be closed on its own")
    _try_removal(plain, graph, groups, example)
    return graph, groups


def _try_removal(plain: nn.Module, graph: ChannelGraph, groups: Sequence[ChannelGroup], example: Tensor) -> None:
    """Removes one channel per group from a copy of ``plain``; the error names the layers of the groups that fail."""
    try:
        _remove_first_channels(plain, graph, groups, example)
    except InputError as error_of_all:
        layers, reason = [], error_of_all
        for group in groups:
            try:
                _remove_first_channels(plain, graph, [group], example)
            except InputError as error_of_group:
                layers += [name.removesuffix(".weight") for name in group.weights]
                reason = error_of_group
        names = ", ".join(layers) or "the selected layers"
        raise InputError(f"channels of {names} cannot be removed: {reason}") from reason


def _remove_first_channels(
    plain: nn.Module, graph: ChannelGraph, groups: Sequence[ChannelGroup], example: Tensor
) -> None:
    trial = copy.deepcopy(plain)
    tensors = tensors_of(trial)
    closed = np.zeros(graph.group_count, bool)
    for group in groups:
        closed[group.ids[0]] = True
        for name, index in (group.weights | group.followers).items():
            tensors[name].detach()[torch.from_numpy(index == 0)] = 0.0
    remove_groups(trial, graph, closed, example)


def _remaining(graph: ChannelGraph, is_open: np.ndarray) -> np.ndarray:
    """Returns which dependency groups stay: the open ones, and one where a tensor would otherwise become empty."""
    remaining = is_open.copy()
    for name, axes in graph.tensor_ids.items():
        for axis, groups in axes.items():
            if not is_open[groups].any():
                remaining[groups[0]] = True
                if axis == 0 and any(layer.kind == "dense" and layer.weight == name for layer in graph.operators):
                    warnings.warn(f"{name} is closed fully: one channel of it is kept", stacklevel=4)
    return remaining


def _slicer(axes: dict[int, np.ndarray], remaining: np.ndarray) -> Callable[[Tensor], Tensor]:
    """Returns the function that selects the remaining channels of a tensor along its channel axes."""

    def select(tensor: Tensor) -> Tensor:
        result = tensor
        for axis, groups in axes.items():
            result = result.index_select(axis, torch.from_numpy(np.flatnonzero(remaining[groups])).to(tensor.device))
        is_channels_last = tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
        return result.contiguous(memory_format=torch.channels_last) if is_channels_last else result

    return select
