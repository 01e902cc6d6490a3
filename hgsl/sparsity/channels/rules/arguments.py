"""Arguments and shapes of the nodes of an exported graph."""

from collections.abc import Callable
from typing import Any

from torch.fx import Node

from hgsl.sparsity.channels.graph import ChannelGraph

Rule = Callable[[ChannelGraph, Node], bool]


def shape_of(node: Node) -> tuple[int, ...]:
    """Returns the shape of a node's output, or of the first of several outputs."""
    value = node.meta["val"]
    return tuple((value[0] if isinstance(value, tuple | list) else value).shape)


def args_of(node: Node) -> Any:
    """Returns the positional arguments, untyped since they differ by operator."""
    return node.args


def argument(node: Node, position: int, name: str, default: Any = None) -> Any:
    """Returns an argument given by position or by name."""
    return args_of(node)[position] if len(args_of(node)) > position else node.kwargs.get(name, default)
