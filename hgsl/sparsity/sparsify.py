"""Masks on the weights or channels of any network."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Literal

from torch import Tensor, nn

from hgsl.common.errors import InputError, unknown
from hgsl.sparsity.channels.costs import layer_costs
from hgsl.sparsity.channels.graph import ChannelGraph
from hgsl.sparsity.channels.groups import ChannelGroup, mask_channels
from hgsl.sparsity.channels.latency import seconds_of_layers
from hgsl.sparsity.channels.removal import removable_groups
from hgsl.sparsity.channels.trace import example_input
from hgsl.sparsity.compatibility import check_network, check_plain, check_weights
from hgsl.sparsity.masks import Masks
from hgsl.sparsity.operations import operations_of_layers, penalize_operations, uses_of_weights
from hgsl.sparsity.selection import select_weights
from hgsl.sparsity.soft_mask import SoftMask, attach, owners_of_parameters

Granularity = Literal["weight", "channel"]
Penalty = Literal["weights", "operations", "time"]


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
        example: An input for tracing channels, counting operations and measuring time, ``(B, ...)``; None is a batch of
            images of the model's input size.
        penalty: ``"weights"`` counts the remaining weights, as published; ``"operations"`` the multiplications per
            input; ``"time"``, for channel masks, the seconds that each layer takes for ``example`` on its device.

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
    check_network(model)
    if not isinstance(mask_initial_value, Real):
        raise InputError(f"mask_initial_value is {mask_initial_value!r:.80}: expected a number such as 0.0")
    if granularity not in ("weight", "channel"):
        raise unknown("granularity", granularity, ("weight", "channel"))
    if penalty not in ("weights", "operations", "time"):
        raise unknown("penalty", penalty, ("weights", "operations", "time"))
    if penalty == "time" and granularity == "weight":
        raise InputError("penalty='time' needs granularity='channel': closed weights take as long as open ones")
    check_plain(model)
    plan = _plan(model, select_weights(model, include, exclude), granularity, example, penalty)
    # All checks are done; the network changes from here on.
    network = model if inplace else copy.deepcopy(model)
    if plan.graph is not None:
        return network, _mask_channels(network, plan, plan.graph, mask_initial_value)
    _mask_weights(network, plan.weights, mask_initial_value)
    if plan.uses is not None:
        penalize_operations(network, plan.uses)
    return network, Masks(network)


@dataclass(frozen=True)
class _Plan:
    """What is masked, and what the penalty counts.

    Attributes:
        weights: Names of the weights.
        uses: The number of uses of each, for weight masks whose operations are counted.
        graph: The channels of the network, for channel masks.
        groups: The masked channel groups.
        costs: Name of a layer's weight -> its share of the cost of the network, for channel masks.
    """

    weights: list[str]
    uses: dict[str, int] | None = None
    graph: ChannelGraph | None = None
    groups: tuple[ChannelGroup, ...] = ()
    costs: dict[str, float] = field(default_factory=dict)


def _plan(
    model: nn.Module, weights: list[str], granularity: Granularity, example: Tensor | None, penalty: Penalty
) -> _Plan:
    check_weights(model, weights)
    if granularity == "weight":
        counted = penalty == "operations"
        return _Plan(weights, uses_of_weights(model, example_input(model, example), weights) if counted else None)
    example = example_input(model, example)
    graph, groups = removable_groups(model, weights, example[:2])
    in_groups = {id(model.get_parameter(name)) for group in groups for name in group.weights}
    weights = [name for name in weights if id(model.get_parameter(name)) in in_groups]
    return _Plan(weights, None, graph, tuple(groups), _shares_of_layers(model, example, penalty))


def _shares_of_layers(model: nn.Module, example: Tensor, penalty: Penalty) -> dict[str, float]:
    """The share of each layer in the cost of the network, by weight name; empty for the number of weights."""
    if penalty == "weights":
        return {}
    if penalty == "operations":
        costs = operations_of_layers(model, example[:2])
        total = sum(costs.values())
    else:
        costs, total = seconds_of_layers(model, example)
    return {name: cost / total for name, cost in costs.items()}


def _mask_channels(network: nn.Module, plan: _Plan, graph: ChannelGraph, initial_value: float) -> Masks:
    masks = mask_channels(network, plan.groups, initial_value)
    if not plan.costs:
        return Masks(network)
    costs = layer_costs(graph, plan.groups, masks, plan.costs)
    costs.set_prices()
    return Masks(network, costs)


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
