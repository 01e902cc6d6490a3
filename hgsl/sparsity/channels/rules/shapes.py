"""Rules of operators that change the shape: padding, concatenation, views, transposes, reductions and slices."""

from collections.abc import Callable
from math import prod

import numpy as np
from torch.fx import Node

from hgsl.sparsity.channels.graph import ChannelGraph, Layout, Operand, Operator
from hgsl.sparsity.channels.rules.arguments import args_of, argument, shape_of
from hgsl.sparsity.channels.rules.elementwise import unary


def pad(graph: ChannelGraph, node: Node) -> bool:
    """``F.pad``: with a constant, or with values of the same channel."""
    constant = argument(node, 2, "mode", "constant") == "constant"
    return _pad(graph, node, (argument(node, 3, "value") or 0) if constant else 0)


def constant_pad(graph: ChannelGraph, node: Node) -> bool:
    """``torch.constant_pad_nd``."""
    return _pad(graph, node, argument(node, 2, "value", 0))


def concatenation(graph: ChannelGraph, node: Node) -> bool:
    """Concatenation along the channel axis, or along another axis, which ties the channels."""
    parts, axis = args_of(node)[0], argument(node, 1, "dim", 0) % len(shape_of(node))
    if any(part not in graph.layouts for part in parts):
        return False
    layouts = [graph.layouts[part] for part in parts]
    if any(layout.axis != layouts[0].axis for layout in layouts):
        return False
    if axis != layouts[0].axis:
        for layout in layouts[1:]:
            graph.tie(layouts[0].ids, layout.ids)
        return graph.add(layouts[0], Operator(node, "sum", tuple(Operand(part) for part in parts)))
    operands, start = [], 0
    for part, layout in zip(parts, layouts, strict=True):
        operands.append(Operand(part, slice(start, start + len(layout.ids))))
        start += len(layout.ids)
    ids = np.concatenate([layout.ids for layout in layouts])
    return graph.add(Layout(axis, ids), Operator(node, "sum", tuple(operands)))


def view(graph: ChannelGraph, node: Node) -> bool:
    """A new shape of the same elements, which keeps the channel axis or merges it with all axes after it."""
    x = args_of(node)[0]
    if x not in graph.layouts:
        return False
    old, new, layout = shape_of(x), shape_of(node), graph.layouts[x]
    before, channels, after = prod(old[: layout.axis]), len(layout.ids), prod(old[layout.axis + 1 :])
    for axis, size in enumerate(new):
        if prod(new[:axis]) != before:
            continue
        if size == channels and prod(new[axis + 1 :]) == after:
            return graph.add(Layout(axis, layout.ids), Operator(node, "sum", (Operand(x),)))
        if size == channels * after:
            merged = Layout(axis, layout.ids.repeat(after))
            return graph.add(merged, Operator(node, "sum", (Operand(x, repeat=after),)))
    return False


def permute(graph: ChannelGraph, node: Node) -> bool:
    """A permutation of the axes, or an exchange of two."""
    rank = len(shape_of(node))
    order = list(range(rank))
    if str(node.target).startswith("aten.transpose"):
        a, b = (dim % rank for dim in args_of(node)[1:3])
        order[a], order[b] = order[b], order[a]
    else:
        order = [dim % rank for dim in args_of(node)[1]]
    return _move_axis(graph, node, order.index)


def reduction(graph: ChannelGraph, node: Node) -> bool:
    """Mean, sum or maximum over other axes than the channel axis."""
    dims, keep = argument(node, 1, "dim"), argument(node, 2, "keepdim", False)
    rank = len(shape_of(args_of(node)[0]))
    dims = range(rank) if dims is None else dims if isinstance(dims, list | tuple) else [dims]
    reduced = {dim % rank for dim in dims}
    return _move_axis(graph, node, lambda axis: axis if keep else axis - sum(dim < axis for dim in reduced), reduced)


def selection(graph: ChannelGraph, node: Node) -> bool:
    """A slice, which keeps its axis, or a select, which drops it; neither along the channel axis."""
    dim = argument(node, 1, "dim", 0) % len(shape_of(args_of(node)[0]))
    drops = str(node.target).startswith("aten.select")
    return _move_axis(graph, node, lambda axis: axis - (drops and dim < axis), {dim})


def _pad(graph: ChannelGraph, node: Node, value: float) -> bool:
    """Padding of the axes after the channel axis; ``value`` is 0 where it repeats values of the channel."""
    x, amounts = args_of(node)[0], args_of(node)[1]
    if x not in graph.layouts or graph.layouts[x].axis >= len(shape_of(x)) - len(amounts) // 2:
        return False
    return unary(graph, node, "opaque" if value else "sum")


def _move_axis(
    graph: ChannelGraph, node: Node, new_axis: Callable[[int], int], changed: set[int] | None = None
) -> bool:
    """Moves the channel axis, unless it is one of the axes that the operator changes."""
    x = args_of(node)[0]
    if x not in graph.layouts or graph.layouts[x].axis in (changed or ()):
        return False
    layout = graph.layouts[x]
    return graph.add(Layout(new_axis(layout.axis), layout.ids), Operator(node, "sum", (Operand(x),)))
