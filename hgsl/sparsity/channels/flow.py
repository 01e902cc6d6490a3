"""Which channels of a network can go without a change of its output."""

from collections.abc import Mapping

import numpy as np
from torch import Tensor
from torch.fx import Node

from hgsl.sparsity.channels.graph import ChannelGraph, Step

Flags = dict[Node, np.ndarray]  # (C,) bool for each tensor


def removable(graph: ChannelGraph, values: Mapping[str, Tensor]) -> np.ndarray:
    """Returns which groups of tied channels can be removed, ``(groups,)`` bool.

    A group can go if each of its channels is zero whatever the input, or is used by nothing that reaches the output.

    Args:
        graph: The network's channels.
        values: Its parameters and buffers by name; only their zeros count.
    """
    names = {name for step in graph.steps for name in (step.weight, step.bias, step.mean) if name}
    closed = {name: (values[name].detach() == 0).cpu().numpy() for name in names}
    zero: Flags = {}
    for step in graph.steps:
        zero[step.node] = _zero(graph, step, zero, closed)
    need = {node: graph.pinned[layout.atoms] for node, layout in graph.layouts.items()}
    for step in reversed(graph.steps):
        _ask(step, need, zero, closed)
    alive = graph.pinned.copy()
    for node, layout in graph.layouts.items():
        alive[layout.atoms[need[node] & ~zero[node]]] = True
    return ~alive


def _zero(graph: ChannelGraph, step: Step, zero: Flags, closed: dict[str, np.ndarray]) -> np.ndarray:
    """Returns which output channels of ``step`` are zero whatever the input."""
    layout = graph.layouts[step.node]
    channels = len(layout.atoms)
    if step.kind == "opaque":
        return np.zeros(channels, bool)
    if step.kind == "param":
        return _per_channel(closed[step.weight or ""], layout.axis)
    if step.kind in ("dense", "affine"):
        no_bias = closed[step.bias] if step.bias else np.ones(channels, bool)
        if step.kind == "affine":
            arrives = zero[step.reads[0].source] & (closed[step.mean] if step.mean else True)  # 0 - mean is not zero
            return no_bias & (_cut(step, closed) | arrives)
        silent = _pairs(closed[step.weight or ""])
        return no_bias & (silent | zero[step.reads[0].source] if step.reads else silent).all(axis=1)
    result = np.full(channels, step.kind == "sum")
    combine = np.logical_and if step.kind == "sum" else np.logical_or
    for read in step.reads:
        result[read.into] = combine(result[read.into], zero[read.source].repeat(read.repeat))
    return result


def _ask(step: Step, need: Flags, zero: Flags, closed: dict[str, np.ndarray]) -> None:
    """Adds to ``need`` the input channels on which the needed output channels of ``step`` depend."""
    wanted = need[step.node]
    for read in step.reads:
        if step.kind == "dense":
            asked = np.any(~_pairs(closed[step.weight or ""])[wanted], axis=0)
        elif step.kind == "affine":
            asked = wanted & ~_cut(step, closed)
        else:
            asked = wanted[read.into]
            if step.kind == "product":
                for other in step.reads:
                    asked = asked & ~zero[other.source] if other is not read else asked
            asked = asked.reshape(-1, read.repeat).any(axis=1)
        need[read.source] |= asked


def _cut(step: Step, closed: dict[str, np.ndarray]) -> np.ndarray | bool:
    return _per_channel(closed[step.weight], 0) if step.weight else False


def _pairs(weight: np.ndarray) -> np.ndarray:
    """(out, in, ...) -> (out, in): whether nothing of an input channel reaches an output channel."""
    return np.asarray(weight.all(axis=tuple(range(2, weight.ndim))))


def _per_channel(weight: np.ndarray, axis: int) -> np.ndarray:
    return np.asarray(weight.all(axis=tuple(i for i in range(weight.ndim) if i != axis)))
