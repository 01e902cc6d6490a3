"""The channels of a network: which tensors share a channel, and what each operator does with it.

Each channel of each tensor is an *atom*. Operators that tie channels together (a residual sum, a depthwise
convolution) tie their atoms into one group, which can only be removed as a whole. A group that an operator needs in
full, whatever its values, is *pinned*: so is everything under a LayerNorm, where a zero counts too.
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
    """Where a tensor keeps its channels: along which axis, and which atom each of them is, ``(C,)`` int64."""

    axis: int
    atoms: np.ndarray


@dataclass(frozen=True)
class Read:
    """What an operator reads: the channels of ``source``, each ``repeat`` times, for its output channels ``into``."""

    source: Node
    into: slice = field(default_factory=lambda: slice(None))
    repeat: int = 1


@dataclass(frozen=True)
class Step:
    """One operator, reduced to what it does to channels.

    ``kind`` is "dense" (every output channel reads every input through ``weight``, ``(out, in, ...)``), "affine"
    (channel by channel, less ``mean``, through ``weight``, plus ``bias``), "param" (a parameter used as an operand), or
    channel by channel without weights: "sum" (zero if all it reads is), "product" (zero if any is), "opaque" (never
    surely zero).
    """

    node: Node
    kind: str
    reads: tuple[Read, ...] = ()
    weight: str | None = None
    bias: str | None = None
    mean: str | None = None


class ChannelGraph:
    """Collects the steps of a network and ties atoms; ``resolve`` turns atoms into groups when all steps are there.

    Args:
        tensors: Placeholder name to the name of the parameter or buffer it stands for.

    Attributes:
        steps: The operators, in order.
        layouts: Node to layout, for tensors whose channels are followed.
        claims: Parameter or buffer name to axis to the atoms along that axis.
        groups: How many groups of tied atoms there are, once resolved; atoms are then group numbers.
        pinned: Which groups must stay, ``(groups,)`` bool.
    """

    def __init__(self, tensors: dict[str, str]) -> None:
        self.tensors = tensors
        self.steps: list[Step] = []
        self.layouts: dict[Node, Layout] = {}
        self.claims: dict[str, dict[int, np.ndarray]] = defaultdict(dict)
        self.groups = 0
        self.pinned = np.zeros(0, bool)
        self._atoms = 0
        self._ties: list[tuple[np.ndarray, np.ndarray]] = []
        self._pins: list[np.ndarray] = []
        self._pinned_tensors: set[str] = set()

    def fresh(self, channels: int) -> np.ndarray:
        """Makes ``channels`` new atoms."""
        self._atoms += channels
        return np.arange(self._atoms - channels, self._atoms)

    def tie(self, a: np.ndarray, b: np.ndarray) -> None:
        """Ties atom i of ``a`` to atom i of ``b``."""
        self._ties.append((a, b))

    def pin(self, nodes: Sequence[Node]) -> None:
        """Keeps all channels of these tensors: parameters stay whole, wherever else they are used."""
        self._pins += [self.layouts[node].atoms for node in nodes if node in self.layouts]
        self._pinned_tensors |= {self.tensors[node.name] for node in nodes if node.name in self.tensors}

    def kept(self, channels: int) -> np.ndarray:
        """Makes ``channels`` new atoms that must stay."""
        self._pins.append(self.fresh(channels))
        return self._pins[-1]

    def claim(self, node: Node, axis: int, atoms: np.ndarray) -> str:
        """Notes that a parameter has these atoms along ``axis``, and returns its name."""
        name = self.tensors[node.name]
        self.tie(self.claims[name].setdefault(axis, atoms), atoms)
        return name

    def emit(self, layout: Layout, step: Step) -> bool:
        """Records an operator and where its output keeps its channels; True, so that a rule can end with it."""
        self.layouts[step.node] = layout
        self.steps.append(step)
        return True

    def resolve(self) -> None:
        """Replaces every atom by the number of its group."""
        pairs = np.concatenate([np.stack(tie) for tie in self._ties], axis=1) if self._ties else np.zeros((2, 0), int)
        edges = coo_array((np.ones(pairs.shape[1]), (pairs[0], pairs[1])), shape=(self._atoms, self._atoms))
        self.groups, group = connected_components(edges, directed=False)
        self.layouts = {node: Layout(layout.axis, group[layout.atoms]) for node, layout in self.layouts.items()}
        self.claims = {name: {axis: group[a] for axis, a in axes.items()} for name, axes in self.claims.items()}
        self.pinned = np.zeros(self.groups, bool)
        for atoms in self._pins:
            self.pinned[group[atoms]] = True
        for name in self._pinned_tensors & self.claims.keys():
            for groups in self.claims[name].values():
                self.pinned[groups] = True
