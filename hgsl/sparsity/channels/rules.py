"""What each kind of ATen operator does to channels: one rule an operator.

A rule records one operator in the graph and returns True; it returns False for a form that it cannot describe.
"""

from collections.abc import Callable
from functools import partial
from math import prod
from typing import Any

import numpy as np
from torch.fx import Node

from hgsl.sparsity.channels.graph import ChannelGraph, Layout, Read, Step

Rule = Callable[[ChannelGraph, Node], bool]


def _shape(node: Node) -> tuple[int, ...]:
    value = node.meta["val"]
    return tuple((value[0] if isinstance(value, tuple | list) else value).shape)


def _args(node: Node) -> Any:
    """The arguments, untyped: fx says that each may be anything, and a rule knows what its operator takes."""
    return node.args


def _argument(node: Node, position: int, name: str, default: Any = None) -> Any:
    return _args(node)[position] if len(_args(node)) > position else node.kwargs.get(name, default)


def _convolution(graph: ChannelGraph, node: Node) -> bool:
    x, weight, bias = _args(node)[0], _args(node)[1], _argument(node, 2, "bias")
    groups = _argument(node, 6, "groups", 1)
    if any(tensor is not None and tensor.name not in graph.tensors for tensor in (weight, bias)):
        return False
    if groups == 1:
        return _dense(graph, node, axis=1)
    depthwise = groups == _shape(x)[1] == _shape(node)[1]
    if not depthwise or x not in graph.layouts or graph.layouts[x].axis != 1:
        return False
    return _affine(graph, node, x, weight, bias)


def _linear(graph: ChannelGraph, node: Node) -> bool:
    return _dense(graph, node, axis=len(_shape(node)) - 1)


def _dense(graph: ChannelGraph, node: Node, axis: int) -> bool:
    x, weight, bias = _args(node)[0], _args(node)[1], _argument(node, 2, "bias")
    if any(tensor is not None and tensor.name not in graph.tensors for tensor in (weight, bias)):
        return False
    follows = x in graph.layouts and graph.layouts[x].axis == axis
    if not follows:
        graph.pin([x])
    graph.claim(weight, 1, graph.layouts[x].atoms if follows else graph.kept(_shape(weight)[1]))
    reads = (Read(x),) if follows else ()
    made = graph.fresh(_shape(node)[axis])
    name = graph.claim(weight, 0, made)
    bias_name = graph.claim(bias, 0, made) if bias is not None else None
    return graph.emit(Layout(axis, made), Step(node, "dense", reads, name, bias_name))


def _affine(graph: ChannelGraph, node: Node, x: Node, *tensors: Node | None) -> bool:
    """Channel by channel through ``tensors``: weight, bias and, of a norm, mean."""
    layout = graph.layouts[x]
    names = [graph.claim(tensor, 0, layout.atoms) if tensor is not None else None for tensor in tensors]
    return graph.emit(layout, Step(node, "affine", (Read(x),), *names))


def _batch_norm(graph: ChannelGraph, node: Node) -> bool:
    x, weight, bias, mean, variance = _args(node)[:5]
    if x not in graph.layouts or graph.layouts[x].axis != 1:
        return False
    graph.claim(variance, 0, graph.layouts[x].atoms)
    return _affine(graph, node, x, weight, bias, mean)


def _getitem(graph: ChannelGraph, node: Node) -> bool:
    if _args(node)[1] != 0 or _args(node)[0] not in graph.layouts:
        return False
    return _unary(graph, node)


def _unary(graph: ChannelGraph, node: Node, kind: str = "sum") -> bool:
    x = _args(node)[0]
    if x not in graph.layouts:
        return False
    return graph.emit(graph.layouts[x], Step(node, kind, (Read(x),)))


def _clamp(graph: ChannelGraph, node: Node, default: tuple[float, float] | None = None) -> bool:
    low, high = (_argument(node, i + 1, name, default and default[i]) for i, name in enumerate(("min", "max")))
    if isinstance(low, Node) or isinstance(high, Node):
        return False
    keeps_zero = (low is None or low <= 0) and (high is None or high >= 0)
    return _unary(graph, node, "sum" if keeps_zero else "opaque")


def _power(graph: ChannelGraph, node: Node) -> bool:
    exponent = _args(node)[1]
    if isinstance(exponent, Node):
        return prod(_shape(exponent)) == 1 and _unary(graph, node, "opaque")
    return _unary(graph, node, "sum" if exponent > 0 else "opaque")


def _spatial(graph: ChannelGraph, node: Node) -> bool:
    """Pooling and resizing work within a channel of (B, C, spatial...)."""
    return _args(node)[0] in graph.layouts and graph.layouts[_args(node)[0]].axis == 1 and _unary(graph, node)


def _pad(graph: ChannelGraph, node: Node) -> bool:
    x, amounts = _args(node)[0], _args(node)[1]
    if x not in graph.layouts or graph.layouts[x].axis >= len(_shape(x)) - len(amounts) // 2:
        return False
    fills = _argument(node, 2, "mode", "constant") == "constant" and _argument(node, 3, "value")
    return _unary(graph, node, "opaque" if fills else "sum")


def _binary(graph: ChannelGraph, node: Node, kind: str) -> bool:
    """Sums, products and quotients; operands are lined up from the last axis, as broadcasting does."""
    operands = [operand for operand in _args(node)[:2] if isinstance(operand, Node)]
    rank = len(_shape(node))
    followed = [x for x in operands if x in graph.layouts]
    if not followed:
        return False
    axis = graph.layouts[followed[0]].axis + rank - len(_shape(followed[0]))
    channels = _shape(node)[axis]
    reads = []
    for x in operands:
        shape = (1,) * (rank - len(_shape(x))) + _shape(x)
        if shape[axis] == 1 and x not in graph.layouts:
            continue  # broadcast over the channels
        layout = graph.layouts.get(x) or _parameter_layout(graph, x)
        if layout is None or layout.axis + rank - len(_shape(x)) != axis or len(layout.atoms) != channels:
            return False
        reads.append(Read(x))
    if kind == "quotient" and (len(reads) > 1 or reads[0].source is not _args(node)[0]):
        return False
    neutral = sum(not isinstance(operand, Node) and operand == 0 for operand in _args(node)[:2])  # as in sum([a, b])
    if kind == "sum" and len(reads) + neutral < len(_args(node)[:2]):
        kind = "opaque"  # a scalar or a broadcast tensor is added to every channel
    atoms = graph.layouts[reads[0].source].atoms
    for read in reads[1:]:
        graph.tie(atoms, graph.layouts[read.source].atoms)
    return graph.emit(Layout(axis, atoms), Step(node, "product" if kind == "quotient" else kind, tuple(reads)))


def _parameter_layout(graph: ChannelGraph, node: Node) -> Layout | None:
    """Follows a parameter used as an operand, if only one of its axes is longer than 1."""
    long = [axis for axis, size in enumerate(_shape(node)) if size > 1]
    if node.name not in graph.tensors or len(long) != 1:
        return None
    layout = Layout(long[0], graph.fresh(_shape(node)[long[0]]))
    graph.emit(layout, Step(node, "param", weight=graph.claim(node, layout.axis, layout.atoms)))
    return layout


def _concatenation(graph: ChannelGraph, node: Node) -> bool:
    parts, axis = _args(node)[0], _argument(node, 1, "dim", 0) % len(_shape(node))
    if any(part not in graph.layouts for part in parts):
        return False
    layouts = [graph.layouts[part] for part in parts]
    if any(layout.axis != layouts[0].axis for layout in layouts):
        return False
    if axis != layouts[0].axis:
        for layout in layouts[1:]:
            graph.tie(layouts[0].atoms, layout.atoms)
        return graph.emit(layouts[0], Step(node, "sum", tuple(Read(part) for part in parts)))
    reads, start = [], 0
    for part, layout in zip(parts, layouts, strict=True):
        reads.append(Read(part, slice(start, start + len(layout.atoms))))
        start += len(layout.atoms)
    joined = np.concatenate([layout.atoms for layout in layouts])
    return graph.emit(Layout(axis, joined), Step(node, "sum", tuple(reads)))


def _view(graph: ChannelGraph, node: Node) -> bool:
    """A new shape in the same order of elements: the channel axis must survive, or swallow the axes after it."""
    x = _args(node)[0]
    if x not in graph.layouts:
        return False
    old, new, layout = _shape(x), _shape(node), graph.layouts[x]
    before, channels, after = prod(old[: layout.axis]), len(layout.atoms), prod(old[layout.axis + 1 :])
    for axis, size in enumerate(new):
        if prod(new[:axis]) != before:
            continue
        if size == channels and prod(new[axis + 1 :]) == after:
            return graph.emit(Layout(axis, layout.atoms), Step(node, "sum", (Read(x),)))
        if size == channels * after:
            return graph.emit(Layout(axis, layout.atoms.repeat(after)), Step(node, "sum", (Read(x, repeat=after),)))
    return False


def _permute(graph: ChannelGraph, node: Node) -> bool:
    rank = len(_shape(node))
    order = list(range(rank))
    if str(node.target).startswith("aten.transpose"):
        a, b = (dim % rank for dim in _args(node)[1:3])
        order[a], order[b] = order[b], order[a]
    else:
        order = [dim % rank for dim in _args(node)[1]]
    return _move_axis(graph, node, order.index)


def _reduction(graph: ChannelGraph, node: Node) -> bool:
    """Mean, sum or maximum over other axes than the channels'."""
    dims, keep = _argument(node, 1, "dim"), _argument(node, 2, "keepdim", False)
    rank = len(_shape(_args(node)[0]))
    gone = {
        dim % rank for dim in (dims if isinstance(dims, list | tuple) else [dims] if dims is not None else range(rank))
    }
    return _move_axis(graph, node, lambda axis: axis if keep else axis - sum(dim < axis for dim in gone), gone)


def _selection(graph: ChannelGraph, node: Node) -> bool:
    """A slice keeps its axis, a select drops it."""
    gone = _argument(node, 1, "dim", 0) % len(_shape(_args(node)[0]))
    drops = str(node.target).startswith("aten.select")
    return _move_axis(graph, node, lambda axis: axis - (drops and gone < axis), {gone})


def _move_axis(graph: ChannelGraph, node: Node, where: Callable[[int], int], gone: set[int] | None = None) -> bool:
    x = _args(node)[0]
    if x not in graph.layouts or graph.layouts[x].axis in (gone or ()):
        return False
    layout = graph.layouts[x]
    return graph.emit(Layout(where(layout.axis), layout.atoms), Step(node, "sum", (Read(x),)))


def _named(rule: Rule, names: str) -> dict[str, Rule]:
    return dict.fromkeys(names.split(), rule)


RULES: dict[str, Rule] = {
    **_named(_convolution, "conv1d conv2d conv3d"),
    **_named(_linear, "linear"),
    **_named(_batch_norm, "_native_batch_norm_legit_no_training"),
    "<built-in function getitem>": _getitem,
    # f(0) = 0
    **_named(_unary, "relu relu6 silu gelu hardswish mish tanh leaky_relu elu selu celu softsign abs neg sqrt square"),
    **_named(_unary, "erf log1p expm1 sin sign clone contiguous alias detach to _to_copy dropout"),
    # f(0) is something else
    **_named(partial(_unary, kind="opaque"), "sigmoid hardsigmoid exp softplus log_sigmoid cos rsqrt reciprocal"),
    **_named(_clamp, "clamp clamp_min"),
    **_named(partial(_clamp, default=(-1.0, 1.0)), "hardtanh"),
    **_named(_power, "pow"),
    **_named(_spatial, "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d max_pool2d_with_indices"),
    **_named(_spatial, "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool2d"),
    **_named(_spatial, "upsample_nearest2d upsample_bilinear2d upsample_bicubic2d _upsample_bilinear2d_aa"),
    **_named(_pad, "pad constant_pad_nd"),
    **_named(partial(_binary, kind="sum"), "add sub"),
    **_named(partial(_binary, kind="product"), "mul"),
    **_named(partial(_binary, kind="quotient"), "div"),
    **_named(_concatenation, "cat"),
    **_named(_view, "view reshape _unsafe_view flatten unflatten squeeze unsqueeze"),
    **_named(_permute, "permute transpose"),
    **_named(_reduction, "mean sum amax amin"),
    **_named(_selection, "slice select"),
}
