"""Channel dependency graph: the channels of each tensor of a network, and what each operator does with them.

Each channel of each tensor has an id. Operators that couple channels (a residual sum, a depthwise convolution) tie
their ids. Tied ids form one *dependency group*, which can only be removed as a whole. A group is *pinned*, and so never
removed, where an operator depends on it whatever its values: a LayerNorm averages zeros too.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch.fx import Node


@dataclass(frozen=True)
class Layout:
    """The channel axis of a tensor, and the ids of its channels, ``(C,)`` int64."""

    axis: int
    ids: np.ndarray


@dataclass(frozen=True)
class Operand:
    """An input of an operator: each channel of ``source``, repeated ``repeat`` times, maps to ``outputs``."""

    source: Node
    outputs: slice = field(default_factory=lambda: slice(None))
    repeat: int = 1


@dataclass(frozen=True)
class Operator:
    """One operator of the network, reduced to its effect on channels.

    ``kind`` is one of

    - "dense": every output channel depends on every input channel through ``weight``, ``(out, in, ...)``;
    - "affine": channel by channel, ``(x - mean) * weight + bias``;
    - "parameter": a parameter used as an operand;
    - "sum": channel by channel; the output is zero where all operands are zero;
    - "product": channel by channel; the output is zero where any operand is zero;
    - "opaque": channel by channel; the output may be nonzero whatever the operands are.

    ``weight``, ``bias`` and ``mean`` are names of parameters or buffers.
    """

    node: Node
    kind: str
    operands: tuple[Operand, ...] = ()
    weight: str | None = None
    bias: str | None = None
    mean: str | None = None


class ChannelGraph:
    """Operators of a network and ties between channels, added one by one; ``resolve`` then numbers the groups.

    Args:
        tensors: Placeholder name to the name of its parameter or buffer.

    Attributes:
        operators: The operators, in execution order.
        layouts: Node to layout, for the tensors whose channels are known.
        tensor_ids: Parameter or buffer name to axis to the channel ids along that axis.
        group_count: Number of dependency groups, once resolved; from then on ids are group numbers.
        pinned: Which groups must stay, ``(group_count,)`` bool.
    """

    def __init__(self, tensors: dict[str, str]) -> None:
        self.tensors = tensors
        self.operators: list[Operator] = []
        self.layouts: dict[Node, Layout] = {}
        self.tensor_ids: dict[str, dict[int, np.ndarray]] = defaultdict(dict)
        self.group_count = 0
        self.pinned = np.zeros(0, bool)
        self._id_count = 0
        self._ties: list[tuple[np.ndarray, np.ndarray]] = []
        self._pinned_ids: list[np.ndarray] = []
        self._pinned_tensors: set[str] = set()

    def new_ids(self, channels: int) -> np.ndarray:
        """Returns ``channels`` new ids."""
        self._id_count += channels
        return np.arange(self._id_count - channels, self._id_count)

    def new_pinned_ids(self, channels: int) -> np.ndarray:
        """Returns ``channels`` new ids of channels that must stay."""
        self._pinned_ids.append(self.new_ids(channels))
        return self._pinned_ids[-1]

    def tie(self, a: np.ndarray, b: np.ndarray) -> None:
        """Ties ``a[i]`` to ``b[i]``."""
        self._ties.append((a, b))

    def pin(self, nodes: Sequence[Node]) -> None:
        """Pins all channels of these tensors; a pinned parameter keeps its shape wherever else it is used."""
        self._pinned_ids += [self.layouts[node].ids for node in nodes if node in self.layouts]
        self._pinned_tensors |= {self.tensors[node.name] for node in nodes if node.name in self.tensors}

    def assign(self, node: Node, axis: int, ids: np.ndarray) -> str:
        """Assigns channel ids to one axis of a parameter or buffer, and returns its name."""
        name = self.tensors[node.name]
        self.tie(self.tensor_ids[name].setdefault(axis, ids), ids)
        return name

    def add(self, layout: Layout, operator: Operator) -> bool:
        """Adds an operator and the layout of its output; returns True, the result of a rule that applies."""
        self.layouts[operator.node] = layout
        self.operators.append(operator)
        return True

    def resolve(self) -> None:
        """Replaces every id by the number of its dependency group."""
        pairs = np.concatenate([np.stack(tie) for tie in self._ties], axis=1) if self._ties else np.zeros((2, 0), int)
        edges = coo_array((np.ones(pairs.shape[1]), (pairs[0], pairs[1])), shape=(self._id_count, self._id_count))
        self.group_count, group = connected_components(edges, directed=False)
        self.layouts = {node: Layout(layout.axis, group[layout.ids]) for node, layout in self.layouts.items()}
        self.tensor_ids = {
            name: {axis: group[ids] for axis, ids in axes.items()} for name, axes in self.tensor_ids.items()
        }
        self.pinned = np.zeros(self.group_count, bool)
        for ids in self._pinned_ids:
            self.pinned[group[ids]] = True
        for name in self._pinned_tensors & self.tensor_ids.keys():
            for groups in self.tensor_ids[name].values():
                self.pinned[groups] = True
