"""Zero propagation through the channel graph: the channels that can be removed without a change of the output."""

from collections.abc import Mapping

import numpy as np
from torch import Tensor
from torch.fx import Node

from hgsl.sparsity.channels.graph import ChannelGraph, Operator

Flags = dict[Node, np.ndarray]  # (C,) bool for each tensor


def removable(graph: ChannelGraph, values: Mapping[str, Tensor]) -> np.ndarray:
    """Returns which dependency groups can be removed, ``(groups,)`` bool.

    A group can be removed if each of its channels is zero whatever the input, or does not affect the output.

    Args:
        graph: The channels of the network.
        values: Its parameters and buffers by name; only which entries are zero matters.
    """
    operators = graph.operators
    names = {name for operator in operators for name in (operator.weight, operator.bias, operator.mean) if name}
    is_zero = {name: (values[name].detach() == 0).cpu().numpy() for name in names}
    zero: Flags = {}  # forward: channels that are zero whatever the input
    for operator in operators:
        zero[operator.node] = _zero_outputs(graph, operator, zero, is_zero)
    needed: Flags = {node: graph.pinned[layout.ids] for node, layout in graph.layouts.items()}
    for operator in reversed(operators):  # backward: channels that the output depends on
        _mark_needed_inputs(operator, needed, zero, is_zero)
    stays = graph.pinned.copy()
    for node, layout in graph.layouts.items():
        stays[layout.ids[needed[node] & ~zero[node]]] = True
    return ~stays


def _zero_outputs(graph: ChannelGraph, operator: Operator, zero: Flags, is_zero: dict[str, np.ndarray]) -> np.ndarray:
    """Returns which output channels of ``operator`` are zero whatever the input, ``(C,)`` bool."""
    layout = graph.layouts[operator.node]
    channels = len(layout.ids)
    if operator.kind == "opaque":
        return np.zeros(channels, bool)
    if operator.kind == "parameter":
        return _zero_slices(is_zero[operator.weight or ""], layout.axis)
    zero_bias = is_zero[operator.bias] if operator.bias else np.ones(channels, bool)
    if operator.kind == "affine":
        zero_mean = is_zero[operator.mean] if operator.mean else True  # 0 - mean is not zero
        return zero_bias & (_zero_factors(operator, is_zero, channels) | zero[operator.operands[0].source] & zero_mean)
    if operator.kind == "dense":
        unconnected = _unconnected(is_zero[operator.weight or ""])
        zero_input = zero[operator.operands[0].source] if operator.operands else False
        return zero_bias & (unconnected | zero_input).all(axis=1)
    is_sum = operator.kind == "sum"
    result = np.full(channels, is_sum)
    for operand in operator.operands:
        zero_operand = zero[operand.source].repeat(operand.repeat)
        zero_so_far = result[operand.outputs]
        result[operand.outputs] = zero_so_far & zero_operand if is_sum else zero_so_far | zero_operand
    return result


def _mark_needed_inputs(operator: Operator, needed: Flags, zero: Flags, is_zero: dict[str, np.ndarray]) -> None:
    """Marks the input channels on which the needed output channels of ``operator`` depend."""
    outputs = needed[operator.node]
    for operand in operator.operands:
        if operator.kind == "dense":
            inputs = np.any(~_unconnected(is_zero[operator.weight or ""])[outputs], axis=0)
        elif operator.kind == "affine":
            inputs = outputs & ~_zero_factors(operator, is_zero, len(outputs))
        else:
            inputs = outputs[operand.outputs]
            if operator.kind == "product":
                for other in operator.operands:
                    inputs = inputs & ~zero[other.source] if other is not operand else inputs
            inputs = inputs.reshape(-1, operand.repeat).any(axis=1)
        needed[operand.source] |= inputs


def _zero_factors(operator: Operator, is_zero: dict[str, np.ndarray], channels: int) -> np.ndarray:
    """Returns which channels an affine operator multiplies by zero, ``(C,)`` bool."""
    return _zero_slices(is_zero[operator.weight], 0) if operator.weight else np.zeros(channels, bool)


def _unconnected(is_zero: np.ndarray) -> np.ndarray:
    """Returns, for a weight ``(out, in, ...)``, which pairs ``(out, in)`` have only zero weights."""
    return np.asarray(is_zero.all(axis=tuple(range(2, is_zero.ndim))))


def _zero_slices(is_zero: np.ndarray, axis: int) -> np.ndarray:
    """Returns which slices along ``axis`` are all zero."""
    return np.asarray(is_zero.all(axis=tuple(i for i in range(is_zero.ndim) if i != axis)))
