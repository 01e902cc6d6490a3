"""Channel groups: the dependency groups that one layer's channels form together, and the mask that closes them."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor, nn

from hgsl.sparsity.channels.flow import removable
from hgsl.sparsity.channels.graph import ChannelGraph, Operator
from hgsl.sparsity.soft_mask import ChannelMask, SoftMask, attach, owners_of_parameters


@dataclass(frozen=True)
class ChannelGroup:
    """The channels that share one mask, with one score per channel.

    Attributes:
        ids: Dependency group of each channel, ``(C,)``.
        weights: Name of each masked weight, with the channel that each of its rows produces, ``(rows,)`` int64.
        followers: The same for biases and norm affines; -1 marks a row of another group, as in a norm after a
            concatenation.
    """

    ids: np.ndarray
    weights: dict[str, np.ndarray]
    followers: dict[str, np.ndarray]


def channel_groups(graph: ChannelGraph, values: dict[str, Tensor], selected: Collection[str]) -> list[ChannelGroup]:
    """Returns the channel groups that masks on the ``selected`` weights alone can close.

    Groups with a pinned channel and groups that contain an unselected weight are left out.

    Args:
        graph: The channels of the network.
        values: Its parameters and buffers by name.
        selected: Names of the weights that may be masked.
    """
    layers = [operator for operator in _passing_zeros(graph) if operator.weight]
    producers = [layer for layer in layers if layer.kind == "dense" or values[layer.weight or ""].ndim > 1]
    norms = [layer for layer in layers if layer.kind == "affine" and values[layer.weight or ""].ndim == 1]
    component = _components(graph, producers)
    allowed = np.ones(component.max(initial=0) + 1, bool)
    for layer in producers:
        allowed[component[_output_ids(graph, layer)]] &= layer.weight in selected
    pinned = component[graph.pinned]
    allowed[pinned[pinned >= 0]] = False  # -1, of channels that no layer produces, such as those of the input
    candidates = [np.flatnonzero(component == number) for number in np.unique(component[component >= 0])]
    candidates = [ids for ids in candidates if len(ids) > 1 and allowed[component[ids[0]]]]
    closable = _closable(graph, values, producers + norms, [ids[0] for ids in candidates])
    return [_channel_group(graph, producers, norms, ids) for ids in candidates if closable[ids[0]]]


def mask_channels(model: nn.Module, groups: Sequence[ChannelGroup], initial_value: float) -> list[SoftMask]:
    """Attaches one shared mask per group to its weights, biases and norms, in every layer that holds them.

    Returns:
        The mask of each group.
    """
    owners = owners_of_parameters(model)
    masks = []
    for group in groups:
        size = len(group.ids)
        weight_count = torch.zeros(size, dtype=torch.int64)
        for name, index in group.weights.items():
            weight_count += torch.from_numpy(np.bincount(index, minlength=size)) * model.get_parameter(name)[0].numel()
        weight = model.get_parameter(next(iter(group.weights)))
        source = SoftMask((size,), initial_value, weight_count.to(weight.device), weight.device, weight.dtype)
        registered = False
        for name, index in (group.weights | group.followers).items():
            in_order = np.array_equal(index, np.arange(size))
            rows = None if in_order else torch.from_numpy(index).to(weight.device)
            for layer, tensor in owners[name]:
                attach(layer, tensor, ChannelMask(source, rows, owner=not registered))
                registered = True
        masks.append(source)
    return masks


def _output_ids(graph: ChannelGraph, operator: Operator) -> np.ndarray:
    return graph.layouts[operator.node].ids


def _passing_zeros(graph: ChannelGraph) -> list[Operator]:
    """Returns the dense and affine operators whose zero channels are zero inputs of the next dense or affine operator.

    The last layer of a squeeze-and-excite gate is not one of them: the sigmoid after it maps zero to one half. Its
    channels are tied to those that it gates, but a mask on it would not close them.
    """
    readers: dict[object, list[Operator]] = {}
    for operator in graph.operators:
        for operand in operator.operands:
            readers.setdefault(operand.source, []).append(operator)
    passes: dict[object, bool] = {}
    for operator in reversed(graph.operators):
        following = readers.get(operator.node, [])
        passes[operator.node] = not following or any(
            reader.kind in ("dense", "affine") or (reader.kind != "opaque" and passes[reader.node])
            for reader in following
        )
    return [operator for operator in graph.operators if operator.kind in ("dense", "affine") and passes[operator.node]]


def _components(graph: ChannelGraph, producers: list[Operator]) -> np.ndarray:
    """Returns the component of each dependency group, ``(groups,)``, -1 for none.

    All channels that one layer produces are in the same component.
    """
    produced = [_output_ids(graph, layer) for layer in producers]
    left = np.concatenate([np.full(len(ids), ids[0]) for ids in produced] or [np.zeros(0, int)])
    right = np.concatenate(produced or [np.zeros(0, int)])
    edges = coo_array((np.ones(len(left)), (left, right)), shape=(graph.group_count, graph.group_count))
    component = connected_components(edges, directed=False)[1]
    not_produced = np.ones(graph.group_count, bool)
    not_produced[right] = False
    return np.where(not_produced, -1, component)


def _closable(graph: ChannelGraph, values: dict[str, Tensor], layers: list[Operator], ids: list[int]) -> np.ndarray:
    """Returns which dependency groups can be removed after closing the channels ``ids`` of a network of ones."""
    trial = {name: torch.ones(tensor.shape) for name, tensor in values.items()}
    for layer in layers:
        rows = torch.from_numpy(np.isin(_output_ids(graph, layer), ids))
        for name in filter(None, (layer.weight, layer.bias)):
            trial[name][rows] = 0.0
    return removable(graph, trial)


def _channel_group(
    graph: ChannelGraph, producers: list[Operator], norms: list[Operator], ids: np.ndarray
) -> ChannelGroup:
    def rows(layers: list[Operator], *fields: str) -> dict[str, np.ndarray]:
        channel_of_row: dict[str, np.ndarray] = {}
        for layer in layers:
            row_ids = _output_ids(graph, layer)
            inside = np.isin(row_ids, ids)
            if inside.any():
                index = np.where(inside, np.searchsorted(ids, row_ids), -1)
                channel_of_row |= {name: index for name in (getattr(layer, field) for field in fields) if name}
        return channel_of_row

    return ChannelGroup(ids, rows(producers, "weight"), rows(producers, "bias") | rows(norms, "weight", "bias"))
