"""Masks on any network: which weights, and how finely."""

import copy
import difflib
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Literal

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize

from hgsl.common.errors import InputError, unknown
from hgsl.sparsity.channel_masks import channel_groups, mask_channels
from hgsl.sparsity.channel_trace import example_input, trace
from hgsl.sparsity.masks import Masks
from hgsl.sparsity.operations import price_operations, uses_of_weights
from hgsl.sparsity.soft_mask import SoftMask, attach

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

    Each layer keeps its own forward: the mask is a parametrisation of its weight. At the start, and at temperature 1,
    all masks are one and the network computes what it did.

    With ``granularity="channel"`` a mask closes a channel altogether: the filters that make it, their bias and the
    affine of the norm after them, through residual sums and depthwise convolutions, so that ``compact`` can take it
    out. Only channels for which that works are masked: the output, attention heads and what a LayerNorm sees stay.

    Args:
        model: Any network, on any device; its parameters must not be parametrised yet.
        mask_initial_value: s0; below zero ends sparser (-0.1), above zero denser (0.1).
        include: Patterns (``"layer1.*"``, ``"*.qkv"``) of the layers to mask, or of other parameters
            (``"blocks.*.in_proj_weight"``) with at least two axes. A pattern that names a block takes all in it.
            None given: the weights of all convolutions, linear layers and attention projections.
        exclude: Patterns of what to leave out of these.
        granularity: A score for each weight, or for each output channel.
        inplace: Whether to change ``model`` itself rather than a copy.
        example: An input for tracing the channels and for counting operations, ``(B, ...)``; None makes images of the
            model's own size.
        penalty: What the penalty counts: the weights that are kept, as published, or the multiplications that they
            cost in one input (``"operations"``), where time is what matters.

    Raises:
        InputError: A pattern matches no layer, nothing is left to mask, the model is masked already, or its channels
            cannot be traced.

    Example:
        >>> from torch import nn
        >>> masked, masks = sparsify(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), exclude="2")
        >>> sorted(masks.density_by_layer())
        ['0']
    """
    if granularity not in ("weight", "channel"):
        raise unknown("granularity", granularity, ("weight", "channel"))
    if penalty not in ("weights", "operations"):
        raise unknown("penalty", penalty, ("weights", "operations"))
    selected = _select(model, _patterns(include), _patterns(exclude))
    network = model if inplace else copy.deepcopy(model)
    if granularity == "channel":
        # The graph is traced on a copy in evaluation mode, where dropout and stochastic depth are gone.
        graph = trace(copy.deepcopy(model).eval(), example_input(model, example))
        groups = channel_groups(graph, dict(network.named_parameters(remove_duplicate=False)), selected)
        if not groups:
            raise InputError("nothing left to mask: no channel of the selected layers can be closed on its own")
        mask_channels(network, groups, mask_initial_value)
    else:
        _mask_weights(network, selected, mask_initial_value)
    if penalty == "operations":
        price_operations(network, uses_of_weights(network, example_input(network, example)))
    return network, Masks(network)


def _mask_weights(network: nn.Module, names: list[str], initial_value: float) -> None:
    masks: dict[int, SoftMask] = {}  # by parameter: one that two layers share has one mask
    for name in names:
        layer, _, tensor = name.rpartition(".")
        weight = network.get_parameter(name)
        if id(weight) not in masks:
            masks[id(weight)] = SoftMask(weight.shape, initial_value, device=weight.device, dtype=weight.dtype)
        attach(network.get_submodule(layer), tensor, masks[id(weight)])


def _patterns(value: str | Sequence[str]) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def _select(model: nn.Module, include: list[str], exclude: list[str]) -> list[str]:
    """Returns the names of the parameters to mask, in the order of the network."""
    usual: dict[str, None] = {}  # a dict for its order
    possible: list[str] = []
    for layer_name, layer in model.named_modules():
        for tensor, parameter in layer._parameters.items():
            name = f"{layer_name}.{tensor}" if layer_name else tensor
            if parameter is None or parameter.ndim < 2 or not parameter.is_floating_point():
                continue
            possible.append(name)
            if isinstance(layer, _ConvNd | nn.Linear) and tensor == "weight":
                usual[name] = None
            if isinstance(layer, nn.MultiheadAttention) and tensor.endswith("proj_weight"):
                usual[name] = None
        if parametrize.is_parametrized(layer):
            raise InputError(f"{layer_name or type(layer).__name__} is parametrised already: sparsify a plain network")
    chosen = set(usual) if not include else set()
    for pattern in include:
        hits = [name for name in usual if _matches(name, pattern)] or [n for n in possible if _matches(n, pattern)]
        chosen |= set(_known(pattern, hits, possible))
    for pattern in exclude:
        chosen -= set(_known(pattern, [name for name in possible if _matches(name, pattern)], possible))
    if not chosen:
        what = (
            "the patterns leave no layer" if possible else f"{type(model).__name__} has no weight of two or more axes"
        )
        raise InputError(f"nothing left to mask: {what} (include={include}, exclude={exclude})")
    return [name for name in possible if name in chosen]


def _matches(parameter: str, pattern: str) -> bool:
    """Whether ``pattern`` names the parameter, its layer, or a block that the layer is in."""
    layer = parameter.rpartition(".")[0]
    return any(fnmatchcase(name, form) for name in (parameter, layer) for form in (pattern, f"{pattern}.*"))


def _known(pattern: str, hits: list[str], possible: list[str]) -> list[str]:
    if not hits:
        layers = [name.removesuffix(".weight") for name in possible]
        close = difflib.get_close_matches(pattern.replace("*", ""), layers, n=3, cutoff=0.4) or layers[:3]
        raise InputError(
            f"layer pattern {pattern!r} matches no layer of {len(layers)}; the nearest: {', '.join(close)}"
        )
    return hits
