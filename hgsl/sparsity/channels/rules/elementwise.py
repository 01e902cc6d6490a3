"""Rules of operators that work channel by channel: activations, powers, sums, products and quotients."""

from math import prod

from torch.fx import Node

from hgsl.sparsity.channels.graph import ChannelGraph, Layout, Operand, Operator
from hgsl.sparsity.channels.rules.arguments import args_of, argument, shape_of


def unary(graph: ChannelGraph, node: Node, kind: str = "sum") -> bool:
    """A function of one tensor; "sum" if it maps zero to zero."""
    x = args_of(node)[0]
    if x not in graph.layouts:
        return False
    return graph.add(graph.layouts[x], Operator(node, kind, (Operand(x),)))


def getitem(graph: ChannelGraph, node: Node) -> bool:
    """The first output of an operator with several."""
    return args_of(node)[1] == 0 and unary(graph, node)


def clamp(graph: ChannelGraph, node: Node, default: tuple[float, float] | None = None) -> bool:
    """Clamping to constant bounds, which keeps zero if it is between them."""
    low, high = (argument(node, i + 1, name, default and default[i]) for i, name in enumerate(("min", "max")))
    if isinstance(low, Node) or isinstance(high, Node):
        return False
    keeps_zero = (low is None or low <= 0) and (high is None or high >= 0)
    return unary(graph, node, "sum" if keeps_zero else "opaque")


def power(graph: ChannelGraph, node: Node) -> bool:
    """A power with one exponent for all channels, which keeps zero if it is a positive constant."""
    exponent = args_of(node)[1]
    if isinstance(exponent, Node):
        return prod(shape_of(exponent)) == 1 and unary(graph, node, "opaque")
    return unary(graph, node, "sum" if exponent > 0 else "opaque")


def binary(graph: ChannelGraph, node: Node, kind: str) -> bool:
    """A sum, product or quotient; operands are aligned at the last axis, as in broadcasting."""
    tensors = [operand for operand in args_of(node)[:2] if isinstance(operand, Node)]
    with_layout = [x for x in tensors if x in graph.layouts]
    if not with_layout:
        return False
    axis = _aligned_axis(graph.layouts[with_layout[0]], with_layout[0], node)
    per_channel = [x for x in tensors if not _broadcasts(graph, x, node, axis)]
    if not all(_has_channels(graph, x, node, axis) for x in per_channel):
        return False
    if kind == "quotient" and (len(per_channel) > 1 or per_channel[0] is not args_of(node)[0]):
        return False
    if kind == "sum" and _shifts_every_channel(node, len(per_channel)):
        kind = "opaque"
    ids = graph.layouts[per_channel[0]].ids
    for x in per_channel[1:]:
        graph.tie(ids, graph.layouts[x].ids)
    operands = tuple(Operand(x) for x in per_channel)
    return graph.add(Layout(axis, ids), Operator(node, "product" if kind == "quotient" else kind, operands))


def _aligned_axis(layout: Layout, x: Node, node: Node) -> int:
    """Returns the axis of the output of ``node`` that the channel axis of ``x`` is broadcast to."""
    return layout.axis + len(shape_of(node)) - len(shape_of(x))


def _broadcasts(graph: ChannelGraph, x: Node, node: Node, axis: int) -> bool:
    """Whether ``x`` has one value for all channels of the output of ``node``."""
    shape = (1,) * (len(shape_of(node)) - len(shape_of(x))) + shape_of(x)
    return shape[axis] == 1 and x not in graph.layouts


def _has_channels(graph: ChannelGraph, x: Node, node: Node, axis: int) -> bool:
    """Whether ``x`` has one channel for each channel of the output of ``node``, along the same axis."""
    layout = graph.layouts.get(x) or _parameter_layout(graph, x)
    return layout is not None and _aligned_axis(layout, x, node) == axis and len(layout.ids) == shape_of(node)[axis]


def _shifts_every_channel(node: Node, operand_count: int) -> bool:
    """Whether a sum adds a nonzero scalar or a broadcast tensor; ``sum([a, b])`` adds the scalar 0."""
    zeros = sum(not isinstance(operand, Node) and operand == 0 for operand in args_of(node)[:2])
    return operand_count + zeros < len(args_of(node)[:2])


def _parameter_layout(graph: ChannelGraph, node: Node) -> Layout | None:
    """Adds a parameter used as an operand, if only one of its axes is longer than 1."""
    long_axes = [axis for axis, size in enumerate(shape_of(node)) if size > 1]
    if node.name not in graph.tensors or len(long_axes) != 1:
        return None
    layout = Layout(long_axes[0], graph.new_ids(shape_of(node)[long_axes[0]]))
    graph.add(layout, Operator(node, "parameter", weight=graph.assign(node, layout.axis, layout.ids)))
    return layout
