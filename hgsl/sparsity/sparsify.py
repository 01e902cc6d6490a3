"""Masks on the weights or channels of any network."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Literal

from torch import Tensor, nn

from hgsl.common.errors import InputError, unknown
from hgsl.sparsity.channels.groups import ChannelGroup, mask_channels
from hgsl.sparsity.channels.removal import removable_groups
from hgsl.sparsity.channels.trace import example_input
from hgsl.sparsity.compatibility import check_plain, check_weights
from hgsl.sparsity.masks import Masks
from hgsl.sparsity.operations import penalize_operations, uses_of_weights
from hgsl.sparsity.selection import select_weights
from hgsl.sparsity.soft_mask import SoftMask, attach, owners_of_parameters

Granularity = Literal["weight", "channel"]
Penalty = Literal["weights", "operations"]


def sparsify(
    model: nn.Module,
    mask_initial_value: float = 0.0,
    include: str | Sequence[str] = (),
    exclude: str | Sequence[str] = (),
    granularity: Granularity = "weight",
    *,
    inplace: bool = False,
    example: Tensor | None = None,
    penalty: Penalty = "weights",
) -> tuple[nn.Module, Masks]:
    """Returns the network with masked weights, and the controller of its masks.

    Each layer keeps its own forward: the mask is a parametrization of its weight. At the start all masks are one, and
    the output is that of ``model``.

    With ``granularity="channel"`` a mask closes whole channels, so that ``compact`` can remove them: it multiplies the
    filters of the channel, their bias and the affine of the norm after them, in every layer that a residual sum or a
    depthwise convolution ties to them. Channels that cannot be removed are not masked: those of the output, of
    attention heads, and under a LayerNorm. Before anything changes, one channel per group is removed from a copy as a
    check.

    A weight that several layers share has one mask, which acts in all of them.

    Args:
        model: Any network without parametrizations, on any device.
        mask_initial_value: s0; below zero ends sparser (-0.1), above zero denser (0.1).
        include: Patterns (``"layer1.*"``, ``"*.qkv"``) of the layers to mask, or of other parameters
            (``"blocks.*.in_proj_weight"``) with at least two axes. The name of a block stands for all its layers.
            Empty: the weights of all convolutions, linear layers and attention projections.
        exclude: Patterns of layers or parameters that are not masked.
        granularity: One score per weight, or one per output channel.
        inplace: Whether to change ``model`` itself rather than a copy.
        example: An input for tracing channels and counting operations, ``(B, ...)``; None is a batch of images of the
            model's input size.
        penalty: ``"weights"`` counts the remaining weights, as published; ``"operations"`` the multiplications that
            they take per input, for speed.

    Raises:
        InputError: A pattern matches no layer, or only some of those that share a weight; nothing is left to mask; a
            layer is of a type that masks do not support, or parametrized; the channels cannot be traced or removed.
            The model is unchanged.

    Example:
        >>> from torch import nn
        >>> masked, masks = sparsify(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), exclude="2")
        >>> sorted(masks.density_by_layer())
        ['0']
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"model is of type {type(model).__name__}: expected a network (torch.nn.Module)")
    if not isinstance(mask_initial_value, Real):
        raise InputError(f"mask_initial_value is {mask_initial_value!r:.80}: expected a number such as 0.0")
    if granularity not in ("weight", "channel"):
        raise unknown("granularity", granularity, ("weight", "channel"))
    if penalty not in ("weights", "operations"):
        raise unknown("penalty", penalty, ("weights", "operations"))
    check_plain(model)
    plan = _plan(model, select_weights(model, include, exclude), granularity, example, penalty)
    # All checks are done; the network changes from here on.
    network = model if inplace else copy.deepcopy(model)
    if granularity == "channel":
        mask_channels(network, plan.groups, mask_initial_value)
    else:
        _mask_weights(network, plan.weights, mask_initial_value)
    if plan.uses is not None:
        penalize_operations(network, plan.uses)
    return network, Masks(network)


@dataclass(frozen=True)
class _Plan:
    """Names of the weights to mask, their channel groups, and the number of uses of each, if it is counted."""

    weights: list[str]
    groups: list[ChannelGroup]
    uses: dict[str, int] | None


def _plan(
    model: nn.Module, weights: list[str], granularity: Granularity, example: Tensor | None, penalty: Penalty
) -> _Plan:
    check_weights(model, weights)
    groups: list[ChannelGroup] = []
    if granularity == "channel":
        groups = removable_groups(model, weights, example_input(model, example))
        in_groups = {id(model.get_parameter(name)) for group in groups for name in group.weights}
        weights = [name for name in weights if id(model.get_parameter(name)) in in_groups]
    uses = uses_of_weights(model, example_input(model, example), weights) if penalty == "operations" else None
    return _Plan(weights, groups, uses)


def _mask_weights(network: nn.Module, names: list[str], initial_value: float) -> None:
    """Attaches one mask to each weight, in every layer that holds it."""
    owners = owners_of_parameters(network)
    names_by_weight: dict[int, str] = {}
    for name in names:
        names_by_weight.setdefault(id(network.get_parameter(name)), name)
    for name in names_by_weight.values():
        weight = network.get_parameter(name)
        mask = SoftMask(weight.shape, initial_value, device=weight.device, dtype=weight.dtype)
        for layer, tensor in owners[name]:
            attach(layer, tensor, mask)
