"""Removal of channels by reconstruction: the layers that read a channel make up for it with those that remain.

Each layer that reads channels x computes y = W x. With second moments K = E[x x^T] of its inputs, the weights over the
remaining channels S that come closest to y are W K[:, S] K[S, S]^-1, and the channel whose removal then changes the
network's output least is that with the least sum over o of g_o w_oc^2 / [K^-1]_cc, where g_o is the squared change of
that output with y_o. So channels are removed one after another in every layer; their price decides among layers.

Source: Hassibi and Stork, Optimal Brain Surgeon, NeurIPS 1992 (the criterion); He et al., Channel Pruning for
Accelerating Very Deep Neural Networks, ICCV 2017 (least squares for channels).
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from hgsl.common.errors import InputError
from hgsl.common.modules import evaluation_mode
from hgsl.sparsity.channels.costs import LayerCosts
from hgsl.sparsity.masks import Masks
from hgsl.sparsity.soft_mask import SoftMask

RIDGE = 1e-3  # of the mean second moment, added to its diagonal
AT_ONCE = 64  # one in so many remaining channels is removed at a time


@dataclass
class Reader:
    """A layer that reads the channels of one mask, and what images tell of it.

    Attributes:
        layer: A convolution or linear layer.
        scores: The score of each input channel, ``(C,)``.
        moments: Sum of x x^T over positions, ``(C m, C m)``, with m columns a channel, as of a filter of m pixels.
        count: Positions.
        gains: Squared change of the network's output with each output of the layer, ``(O,)``.
    """

    layer: nn.Module
    scores: Tensor
    moments: Tensor | None = None
    count: int = 0
    gains: Tensor | None = None
    outputs: list[Tensor] = field(default_factory=list)


def reconstruct(network: nn.Module, masks: Masks, batches: Iterable[Tensor], target: float) -> None:
    """Closes channels until the share ``target`` of the costs is left, and changes the weights that read them.

    Args:
        network: A masked network with open channels; its weights are changed in place.
        masks: Its masks, by ``sparsify`` with ``granularity="channel"`` and ``penalty="operations"`` or ``"time"``.
        batches: Inputs, ``(B, ...)`` each, a few thousand positions in all for a layer of a thousand channels.
        target: The share.

    Raises:
        InputError: The masks have no costs, or closing all channels that can be closed in this way leaves more.
    """
    costs = masks.costs
    if costs is None:
        raise InputError("reconstruct needs costs: sparsify(granularity='channel', penalty='operations' or 'time')")
    readers = _readers(network, costs)
    _measure(network, [reader for group in readers.values() for reader in group], batches)
    removals = {mask: _removals(mask, group) for mask, group in readers.items()}
    _close(costs, removals, target)
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
                group.append(Reader(layers[name.removesuffix(".weight")], scores - first))
        expected = torch.arange(end - first)
        if group and all(_is_supported(r) and torch.equal(r.scores.sort().values, expected) for r in group):
            readers[mask] = group
    return readers


def _is_supported(reader: Reader) -> bool:
    layer = reader.layer
    convolution = isinstance(layer, nn.Conv2d) and not isinstance(layer.padding, str) and layer.padding_mode == "zeros"
    return convolution or isinstance(layer, nn.Linear)


def _measure(network: nn.Module, readers: list[Reader], batches: Iterable[Tensor]) -> None:
    """Runs the network on the batches, and collects the second moments of inputs and the gains of outputs."""
    handles = [reader.layer.register_forward_hook(partial(_record, reader)) for reader in readers]
    generator, count = torch.Generator().manual_seed(0), 0
    try:
        with evaluation_mode(network), torch.enable_grad():
            for batch in batches:
                output = network(batch)
                direction = torch.randn(output.shape, generator=generator).to(output)
                tensors = [tensor for reader in readers for tensor in reader.outputs]
                gradients = iter(torch.autograd.grad((output * direction).sum(), tensors))
                for reader in readers:
                    for _ in reader.outputs:
                        gains = _outputs_first(reader.layer, next(gradients)).double().square().sum(1)
                        reader.gains = gains if reader.gains is None else reader.gains + gains
                    reader.outputs.clear()
                count += len(batch)
    finally:
        for handle in handles:
            handle.remove()
    for reader in readers:
        assert reader.gains is not None
        reader.gains /= count


def _outputs_first(layer: nn.Module, gradient: Tensor) -> Tensor:
    """(O, positions) of a gradient ``(B, O, h, w)`` or ``(..., O)``."""
    return gradient.movedim(-1 if isinstance(layer, nn.Linear) else 1, 0).flatten(1)


@torch.no_grad()
def _columns(layer: Any, x: Tensor) -> Tensor:
    """The inputs of a layer as ``(positions, C m)``."""
    if isinstance(layer, nn.Linear):
        return x.flatten(0, -2)
    if layer.kernel_size == (1, 1):
        return x[:, :, :: layer.stride[0], :: layer.stride[1]].permute(0, 2, 3, 1).flatten(0, 2)
    patches = F.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)  # (B, C m, positions)
    return patches.mT.flatten(0, 1)


def _record(reader: Reader, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    columns = _columns(layer, inputs[0].detach()).double()
    moments = columns.T @ columns
    reader.moments = moments if reader.moments is None else reader.moments + moments
    reader.count += len(columns)
    if not output.requires_grad:
        output = output.detach().requires_grad_()
    reader.outputs.append(output)
    return output


def _second_moments(reader: Reader) -> Tensor:
    assert reader.moments is not None
    moments = reader.moments / reader.count
    return moments + RIDGE * moments.diagonal().mean() * torch.eye(len(moments)).to(moments)


def _original(reader: Reader) -> Tensor:
    """The weight of a layer as stored, ``(O, C, ...)``."""
    layer: Any = reader.layer
    return layer.parametrizations.weight.original if parametrize.is_parametrized(layer, "weight") else layer.weight


@torch.no_grad()
def _removals(mask: SoftMask, readers: list[Reader]) -> tuple[list[int], list[float]]:
    """The channels of a mask in the order of their removal, and how much each changes the network's output."""
    size = mask.scores.numel()
    weights, inverses = [], []
    for reader in readers:
        weight = _original(reader).detach().double()
        assert reader.gains is not None
        columns = _columns_of(reader, weight[0, 0].numel())
        weights.append((weight.flatten(1) * reader.gains.sqrt()[:, None])[:, columns])  # scores in order
        inverses.append(torch.linalg.inv(_second_moments(reader))[columns][:, columns])
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
    if share_at(math.inf) > target:
        raise InputError(
            f"the target share {target} cannot be reached: {float(costs.share()):.3f} is left when every layer whose "
            "channels can be reconstructed keeps one: choose a larger one, or mask more layers"
        )
    low, high = -60.0, 60.0  # natural logarithm of the limit
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if share_at(math.exp(middle)) > target else (low, middle)
    share_at(math.exp(high))


@torch.no_grad()
def _refit(reader: Reader, is_open: Tensor) -> None:
    """Sets the weights of the open channels to those that come closest to the output of all."""
    weight = _original(reader)
    width = weight[0, 0].numel()
    open_columns = is_open[reader.scores.to(is_open.device)].repeat_interleave(width)
    if bool(open_columns.all()):
        return
    moments = _second_moments(reader)
    inside = moments[open_columns][:, open_columns]
    flat = weight.flatten(1).double()
    fitted = torch.zeros_like(flat)
    fitted[:, open_columns] = torch.linalg.solve(inside, moments[open_columns] @ flat.T).T
    weight.copy_(fitted.view_as(weight))
