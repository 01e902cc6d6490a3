"""Masks that close whole channels: which layers share one, and which groups of channels can be closed at all."""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor, nn

from hgsl.sparsity.channels.flow import removable
from hgsl.sparsity.channels.graph import ChannelGraph, Step
from hgsl.sparsity.soft_mask import ChannelMask, SoftMask, attach, owners_of_parameters


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that are closed together.

    Attributes:
        atoms: Which of the graph's groups of tied atoms each channel is, ``(C,)``; each has one score.
        weights: Names of the filters, each with the channel that each of its rows makes, ``(rows,)`` int64.
        followers: The same for the biases and the affines of the norms; -1 is a row of another group, as in a norm
            after a concatenation.
    """

    atoms: np.ndarray
    weights: dict[str, np.ndarray]
    followers: dict[str, np.ndarray]


def channel_groups(graph: ChannelGraph, values: dict[str, Tensor], selected: Collection[str]) -> list[ChannelGroup]:
    """Returns the groups of channels that can be closed through ``selected`` filters alone.

    Left out are channels that the network needs whatever their value (the output, what is under a LayerNorm or in
    attention heads), and groups that an unselected filter belongs to.

    Args:
        graph: The network's channels.
        values: Its parameters and buffers by name.
        selected: Names of the weights that may be masked.
    """
    makers = [
        step for step in _carriers(graph) if step.weight and (step.kind == "dense" or values[step.weight].ndim > 1)
    ]
    norms = [
        step for step in _carriers(graph) if step.weight and step.kind == "affine" and values[step.weight].ndim == 1
    ]
    component = _components(graph, makers)
    allowed = np.ones(component.max(initial=0) + 1, bool)
    for step in makers:
        allowed[component[_atoms(graph, step)]] &= step.weight in selected
    allowed[component[graph.pinned]] = False
    candidates = [np.flatnonzero(component == number) for number in np.unique(component[component >= 0])]
    candidates = [atoms for atoms in candidates if len(atoms) > 1 and allowed[component[atoms[0]]]]
    closable = _closable(graph, values, makers + norms, [atoms[0] for atoms in candidates])
    return [_group(graph, makers, norms, atoms) for atoms in candidates if closable[atoms[0]]]


def mask_channels(model: nn.Module, groups: list[ChannelGroup], initial_value: float) -> None:
    """Puts one shared mask on each group's filters, biases and norms, in every layer that uses them."""
    owners = owners_of_parameters(model)
    for group in groups:
        size = len(group.atoms)
        cost = torch.zeros(size, dtype=torch.int64)
        for name, index in group.weights.items():
            cost += torch.from_numpy(np.bincount(index, minlength=size)) * model.get_parameter(name)[0].numel()
        first = model.get_parameter(next(iter(group.weights)))
        source = SoftMask((size,), initial_value, cost.to(first.device), first.device, first.dtype)
        registered = False
        for name, index in (group.weights | group.followers).items():
            in_order = np.array_equal(index, np.arange(size))
            rows = None if in_order else torch.from_numpy(index).to(first.device)
            for layer, tensor in owners[name]:
                attach(layer, tensor, ChannelMask(source, rows, owner=not registered))
                registered = True


def _atoms(graph: ChannelGraph, step: Step) -> np.ndarray:
    return graph.layouts[step.node].atoms


def _carriers(graph: ChannelGraph) -> list[Step]:
    """Returns the layers whose zeros arrive at another layer.

    Not so the last layer of a squeeze-and-excite gate: after its sigmoid a zero is one half. It shares the channels of
    what it scales, but closing it would close nothing.
    """
    readers: dict[object, list[Step]] = {}
    for step in graph.steps:
        for read in step.reads:
            readers.setdefault(read.source, []).append(step)
    arrives: dict[object, bool] = {}
    for step in reversed(graph.steps):
        onward = readers.get(step.node, [])
        arrives[step.node] = not onward or any(
            reader.kind in ("dense", "affine") or (reader.kind != "opaque" and arrives[reader.node])
            for reader in onward
        )
    return [step for step in graph.steps if step.kind in ("dense", "affine") and arrives[step.node]]


def _components(graph: ChannelGraph, makers: list[Step]) -> np.ndarray:
    """Returns which component each group of atoms is in, ``(groups,)``, -1 for none: a layer's channels go together."""
    made = [_atoms(graph, step) for step in makers]
    left = np.concatenate([np.full(len(atoms), atoms[0]) for atoms in made] or [np.zeros(0, int)])
    right = np.concatenate(made or [np.zeros(0, int)])
    edges = coo_array((np.ones(len(left)), (left, right)), shape=(graph.groups, graph.groups))
    component = connected_components(edges, directed=False)[1]
    untouched = np.ones(graph.groups, bool)
    untouched[right] = False
    return np.where(untouched, -1, component)


def _closable(graph: ChannelGraph, values: dict[str, Tensor], layers: list[Step], atoms: list[int]) -> np.ndarray:
    """Closes one channel of each group, on weights that are otherwise all ones, and returns which could then go."""
    trial = {name: torch.ones(tensor.shape) for name, tensor in values.items()}
    for step in layers:
        rows = torch.from_numpy(np.isin(_atoms(graph, step), atoms))
        for name in filter(None, (step.weight, step.bias)):
            trial[name][rows] = 0.0
    return removable(graph, trial)


def _group(graph: ChannelGraph, makers: list[Step], norms: list[Step], atoms: np.ndarray) -> ChannelGroup:
    def rows(steps: list[Step], names: tuple[str, ...]) -> dict[str, np.ndarray]:
        found: dict[str, np.ndarray] = {}
        for step in steps:
            own = _atoms(graph, step)
            inside = np.isin(own, atoms)
            if inside.any():
                index = np.where(inside, np.searchsorted(atoms, own), -1)
                found |= {name: index for name in (getattr(step, field) for field in names) if name}
        return found

    return ChannelGroup(atoms, rows(makers, ("weight",)), rows(makers, ("bias",)) | rows(norms, ("weight", "bias")))
