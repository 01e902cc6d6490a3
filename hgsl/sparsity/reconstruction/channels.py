"""Removal of channels: the layers that read a channel make up for it with those that remain.

The weights over the remaining channels S that come closest to the outputs of all are W K[:, S] K[S, S]^-1, and the
channel c whose removal then changes the network's output least is that with the least sum over o of
g_o w_oc^2 / [K^-1]_cc. So channels are removed one after another in every layer; their price decides among layers.

Source: He et al., Channel Pruning for Accelerating Very Deep Neural Networks, ICCV 2017 (least squares for channels).
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from hgsl.sparsity.channels.costs import LayerCosts
from hgsl.sparsity.reconstruction.inputs import LayerInputs, close_down_to, is_supported, measure
from hgsl.sparsity.soft_mask import SoftMask

AT_ONCE = 64  # one in so many remaining channels is removed at a time


@dataclass
class Reader:
    """A layer that reads the channels of one mask, and the score of each of its input channels, ``(C,)``."""

    inputs: LayerInputs
    scores: Tensor


def remove_channels(network: nn.Module, costs: LayerCosts, batches: Iterable[Tensor], target: float) -> None:
    """Closes channels until the share ``target`` of the costs is left, and refits the layers that read them.

    See :func:`hgsl.sparsity.reconstruct`.
    """
    readers = _readers(network, costs)
    measure(network, [reader.inputs for group in readers.values() for reader in group], batches)
    readers = {mask: group for mask, group in readers.items() if all(reader.inputs.count for reader in group)}
    _close(costs, {mask: _removals(mask, group) for mask, group in readers.items()}, target)
    for mask, group in readers.items():
        for reader in group:
            _refit(reader, mask.scores > 0)


def _readers(network: nn.Module, costs: LayerCosts) -> dict[SoftMask, list[Reader]]:
    """The layers that read each mask's channels; without masks of which some layer also reads other channels."""
    layers = dict(network.named_modules())
    readers: dict[SoftMask, list[Reader]] = {}
    bounds = list(pairwise(torch.tensor([0, *(mask.scores.numel() for mask in costs.masks)]).cumsum(0).tolist()))
    for mask, (first, end) in zip(costs.masks, bounds, strict=True):
        group = []
        for name, scores in costs.input_scores.items():
            if bool(((scores >= first) & (scores < end)).any()):
                group.append(Reader(LayerInputs(layers[name.removesuffix(".weight")]), scores - first))
        expected = torch.arange(end - first)
        if group and all(is_supported(r.inputs.layer) and torch.equal(r.scores.sort().values, expected) for r in group):
            readers[mask] = group
    return readers


@torch.no_grad()
def _removals(mask: SoftMask, readers: list[Reader]) -> tuple[list[int], list[float]]:
    """The channels of a mask in the order of their removal, and how much each changes the network's output."""
    size = mask.scores.numel()
    weights, inverses = [], []
    for reader in readers:
        weight, gains, moments = reader.inputs.weight.detach().double(), reader.inputs.gains, reader.inputs.moments
        assert gains is not None
        assert moments is not None
        columns = _columns_of(reader, weight[0, 0].numel())
        weights.append((weight.flatten(1) * gains.sqrt()[:, None])[:, columns])  # scores in order
        inverses.append(torch.linalg.inv(moments)[columns][:, columns])
    alive = torch.ones(size, dtype=torch.bool, device=mask.scores.device)
    order: list[int] = []
    changes: list[float] = []
    while int(alive.sum()) > 1:
        losses = torch.stack([_losses(w, inverse, size) for w, inverse in zip(weights, inverses, strict=True)]).sum(0)
        losses[~alive] = math.inf
        chosen = losses.argsort()[: max(1, (int(alive.sum()) - 1) // AT_ONCE)]
        order += chosen.tolist()
        changes += losses[chosen].tolist()
        alive[chosen] = False
        for w, inverse in zip(weights, inverses, strict=True):
            width = len(inverse) // size
            rows = (chosen[:, None] * width + torch.arange(width, device=chosen.device)).flatten()
            solved = torch.linalg.solve(inverse[rows][:, rows], inverse[rows])
            w -= w[:, rows] @ solved
            inverse -= inverse[:, rows] @ solved
            for axis, tensor in ((1, w), (0, inverse), (1, inverse)):
                tensor.index_fill_(axis, rows, 0.0)
            inverse.diagonal()[rows] = 1.0  # keeps the blocks of removed channels invertible
    return order, changes


def _columns_of(reader: Reader, width: int) -> Tensor:
    """The columns of the flattened weight, in the order of the scores."""
    return (reader.scores.argsort()[:, None] * width + torch.arange(width)).flatten()


def _losses(weight: Tensor, inverse: Tensor, size: int) -> Tensor:
    """How much the removal of each channel alone changes the outputs, ``(C,)``: sum over o of w_oc B_c^-1 w_oc."""
    width = len(inverse) // size
    blocks = inverse.view(size, width, size, width).diagonal(dim1=0, dim2=2).permute(2, 0, 1)  # (C, m, m)
    rows = weight.view(len(weight), size, width).permute(1, 2, 0)  # (C, m, O)
    return (torch.linalg.solve(blocks, rows) * rows).sum((1, 2))


@torch.no_grad()
def _close(costs: LayerCosts, removals: dict[SoftMask, tuple[list[int], list[float]]], target: float) -> None:
    """Closes the channels whose removal changes the output least for the cost that it saves, down to the target."""
    opening = {mask: mask.scores.abs().clamp_min(1e-3) for mask in removals}

    def share_at(limit: float) -> float:
        for mask, (order, changes) in removals.items():
            assert mask.price is not None
            change = torch.tensor(changes, device=mask.scores.device).cummax(0).values
            closed = torch.tensor(order, device=mask.scores.device)[change < limit * mask.price[order].double()]
            mask.scores.copy_(opening[mask].index_fill(0, closed, -1.0))
        return float(costs.share())

    for mask in costs.masks:
        mask.ticket = True
    close_down_to(target, share_at)


@torch.no_grad()
def _refit(reader: Reader, is_open: Tensor) -> None:
    """Sets the weights of the open channels to those that come closest to the output of all."""
    weight, moments = reader.inputs.weight, reader.inputs.moments
    assert moments is not None
    width = weight[0, 0].numel()
    open_columns = is_open[reader.scores.to(is_open.device)].repeat_interleave(width)
    if bool(open_columns.all()):
        return
    inside = moments[open_columns][:, open_columns]
    flat = weight.flatten(1).double()
    fitted = torch.zeros_like(flat)
    fitted[:, open_columns] = torch.linalg.solve(inside, moments[open_columns] @ flat.T).T
    weight.copy_(fitted.view_as(weight))
