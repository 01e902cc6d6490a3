"""Cost of a network as a function of its channel masks: the operations or the measured seconds of each layer.

A convolution costs in proportion to its open outputs times its open inputs, a depthwise convolution or a norm in
proportion to its open channels::

    share = 1 - sum over layers l of c_l (1 - a_l b_l)

with c_l the layer's share of the cost of the whole network, and a_l, b_l the open shares of its outputs and inputs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hgsl.sparsity.channels.graph import ChannelGraph
from hgsl.sparsity.channels.groups import ChannelGroup
from hgsl.sparsity.soft_mask import SoftMask


@dataclass(frozen=True)
class LayerCosts:
    """The costs of the layers, and which scores close their channels.

    Attributes:
        masks: The masks, with S scores together.
        costs: c_l, ``(L,)``, whose sum is at most 1; the rest of the network costs the same whatever is closed.
        outputs: The share of a layer's outputs that each score closes, ``(L, S)``.
        inputs: The same for its inputs.
        input_scores: Name of a weight with an axis of input channels -> the score of each, -1 for one without a mask.
    """

    masks: Sequence[SoftMask]
    costs: Tensor
    outputs: Tensor
    inputs: Tensor
    input_scores: Mapping[str, Tensor]

    def share(self) -> Tensor:
        """Returns the share of the cost that is left, a scalar; soft masks count as far as they are open."""
        closed = 1 - torch.cat([mask.gate() for mask in self.masks]).to(self.costs.dtype)
        # The masks may have moved with the network.
        costs, outputs, inputs = (tensor.to(closed.device) for tensor in (self.costs, self.outputs, self.inputs))
        open_outputs, open_inputs = 1 - outputs @ closed, 1 - inputs @ closed
        return 1 - (costs * (1 - open_outputs * open_inputs)).sum()

    @torch.no_grad()
    def set_prices(self) -> None:
        """Makes the penalty of every mask count costs: those saved by closing one channel of the open network.

        They are scaled to add up to the number of masked weights, so that one lambda suits all penalties.
        """
        prices = (self.outputs + self.inputs).T @ self.costs  # (S,)
        scaled = prices * (sum(mask.count_masked() for mask in self.masks) / prices.sum())
        for mask, part in zip(self.masks, scaled.split([mask.scores.numel() for mask in self.masks]), strict=True):
            mask.penalty_weight = part


def layer_costs(
    graph: ChannelGraph,
    groups: Sequence[ChannelGroup],
    masks: Sequence[SoftMask],
    costs: Mapping[str, float],
) -> LayerCosts:
    """Relates the costs of layers to the masks of their channels.

    Args:
        graph: The channels of the network.
        groups: The masked channel groups.
        masks: Their masks, in the same order.
        costs: Name of a layer's weight -> its share of the cost of the whole network.
    """
    score_of_id = np.full(graph.group_count, -1)
    first = 0
    for group in groups:
        score_of_id[group.ids] = np.arange(first, first + len(group.ids))
        first += len(group.ids)
    names = [name for name in costs if name in graph.tensor_ids]
    device = masks[0].scores.device
    outputs, inputs = (
        torch.stack([_shares(score_of_id[_ids(graph, name, axis)], first) for name in names]).to(device)
        for axis in (0, 1)
    )
    values = torch.tensor([costs[name] for name in names], dtype=torch.float32, device=device)
    input_scores = {
        name: torch.from_numpy(score_of_id[ids]) for name in names if (ids := graph.tensor_ids[name].get(1)) is not None
    }
    return LayerCosts(masks, values, outputs, inputs, input_scores)


def _ids(graph: ChannelGraph, name: str, axis: int) -> np.ndarray:
    """The dependency groups along an axis of a weight; none along one without channels, as in a depthwise filter."""
    return graph.tensor_ids[name].get(axis, np.zeros(0, int))


def _shares(scores: np.ndarray, count: int) -> Tensor:
    """The share ``(count,)`` of an axis that each score closes; -1 stands for a channel without a mask."""
    masked = np.bincount(scores[scores >= 0], minlength=count)
    return torch.from_numpy(masked / max(1, len(scores))).to(torch.float32)
