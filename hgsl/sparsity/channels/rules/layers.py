"""Rules of layers: convolutions, linear layers, norms, activations with parameters, pooling."""

from torch.fx import Node

from hgsl.sparsity.channels.graph import ChannelGraph, Layout, Operand, Operator
from hgsl.sparsity.channels.rules.arguments import args_of, argument, shape_of
from hgsl.sparsity.channels.rules.elementwise import unary


def convolution(graph: ChannelGraph, node: Node) -> bool:
    """Ungrouped and depthwise convolutions; other groups are not covered."""
    x, weight, bias = args_of(node)[0], args_of(node)[1], argument(node, 2, "bias")
    groups = argument(node, 6, "groups", 1)
    if not _are_stored(graph, weight, bias):
        return False
    if groups == 1:
        return _dense(graph, node, axis=1)
    depthwise = groups == shape_of(x)[1] == shape_of(node)[1]
    if not depthwise or x not in graph.layouts or graph.layouts[x].axis != 1:
        return False
    return _affine(graph, node, x, weight, bias)


def linear(graph: ChannelGraph, node: Node) -> bool:
    """A linear layer maps the last axis."""
    return _dense(graph, node, axis=len(shape_of(node)) - 1)


def batch_norm(graph: ChannelGraph, node: Node) -> bool:
    """Batch norm with running statistics, in evaluation mode."""
    x, weight, bias, mean, variance = args_of(node)[:5]
    if x not in graph.layouts or graph.layouts[x].axis != 1 or not _are_stored(graph, weight, bias, mean, variance):
        return False
    graph.assign(variance, 0, graph.layouts[x].ids)
    return _affine(graph, node, x, weight, bias, mean)


def prelu(graph: ChannelGraph, node: Node) -> bool:
    """PReLU with one slope, or with one per channel."""
    x, slope = args_of(node)[:2]
    if shape_of(slope) == (1,):
        return unary(graph, node)
    if x not in graph.layouts or graph.layouts[x].axis != 1 or not _are_stored(graph, slope):
        return False
    graph.assign(slope, 0, graph.layouts[x].ids)
    return unary(graph, node)


def spatial(graph: ChannelGraph, node: Node) -> bool:
    """Pooling and resizing of the axes after the channels, ``(B, C, ...)``."""
    x = args_of(node)[0]
    return x in graph.layouts and graph.layouts[x].axis == 1 and unary(graph, node)


def _dense(graph: ChannelGraph, node: Node, axis: int) -> bool:
    """Every output channel along ``axis`` depends on every input channel."""
    x, weight, bias = args_of(node)[0], args_of(node)[1], argument(node, 2, "bias")
    if not _are_stored(graph, weight, bias):
        return False
    has_layout = x in graph.layouts and graph.layouts[x].axis == axis
    if not has_layout:
        graph.pin([x])
    graph.assign(weight, 1, graph.layouts[x].ids if has_layout else graph.new_pinned_ids(shape_of(weight)[1]))
    outputs = graph.new_ids(shape_of(node)[axis])
    weight_name = graph.assign(weight, 0, outputs)
    bias_name = graph.assign(bias, 0, outputs) if bias is not None else None
    operands = (Operand(x),) if has_layout else ()
    return graph.add(Layout(axis, outputs), Operator(node, "dense", operands, weight_name, bias_name))


def _affine(graph: ChannelGraph, node: Node, x: Node, *tensors: Node | None) -> bool:
    """Channel by channel through ``tensors``: weight, bias and the mean of a norm."""
    layout = graph.layouts[x]
    names = [graph.assign(tensor, 0, layout.ids) if tensor is not None else None for tensor in tensors]
    return graph.add(layout, Operator(node, "affine", (Operand(x),), *names))


def _are_stored(graph: ChannelGraph, *tensors: Node | None) -> bool:
    """Whether all of these are parameters or buffers, and none is computed."""
    return all(tensor is None or tensor.name in graph.tensors for tensor in tensors)
