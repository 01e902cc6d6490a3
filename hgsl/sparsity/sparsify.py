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
from hgsl.sparsity.channels.masks import channel_groups, mask_channels
from hgsl.sparsity.channels.trace import example_input, trace
from hgsl.sparsity.compact import tensors_of, try_removal
from hgsl.sparsity.masks import Masks
from hgsl.sparsity.operations import price_operations, uses_of_weights
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

    Each layer keeps its own forward: the mask is a parametrisation of its weight. At the start, and at temperature 1,
    all masks are one and the network computes what it did.

    With ``granularity="channel"`` a mask closes a channel altogether: the filters that make it, their bias and the
    affine of the norm after them, through residual sums and depthwise convolutions, so that ``compact`` can take it
    out. Only channels for which that works are masked: the output, attention heads and what a LayerNorm sees stay.
    Taking one channel of each group out of a copy makes sure of it.

    A weight that several layers share is masked in all of them.

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
        InputError: A pattern matches no layer, or one of several that share a weight; nothing is left to mask; the
            model is masked already; its channels cannot be traced or not be taken out. The model is then as it was.

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
    if granularity == "channel":
        example = example_input(model, example)
        # The graph is traced on a copy in evaluation mode, where dropout and stochastic depth are gone.
        plain = copy.deepcopy(model).eval()
        graph = trace(plain, example)
        groups = channel_groups(graph, tensors_of(model), selected)
        if not groups:
            raise InputError("nothing left to mask: no channel of the selected layers can be closed on its own")
        try_removal(plain, graph, groups, example)
        closed = {id(model.get_parameter(name)) for group in groups for name in group.weights}
        selected = [name for name in selected if id(model.get_parameter(name)) in closed]
    uses = uses_of_weights(model, example_input(model, example), selected) if penalty == "operations" else None
    # All that can fail has been tried: from here on the network changes.
    network = model if inplace else copy.deepcopy(model)
    if granularity == "channel":
        mask_channels(network, groups, mask_initial_value)
    else:
        _mask_weights(network, selected, mask_initial_value)
    if uses is not None:
        price_operations(network, uses)
    return network, Masks(network)


def _mask_weights(network: nn.Module, names: list[str], initial_value: float) -> None:
    owners = owners_of_parameters(network)
    weights = {id(weight): (name, weight) for name, weight in ((n, network.get_parameter(n)) for n in names)}
    for name, weight in weights.values():
        mask = SoftMask(weight.shape, initial_value, device=weight.device, dtype=weight.dtype)
        for layer, tensor in owners[name]:  # one that two layers share has one mask
            attach(layer, tensor, mask)


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
        if not hits and (weightless := _named(model, pattern)):
            raise InputError(f"layer pattern {pattern!r} names a {weightless}, which has no weight of two or more axes")
        chosen |= set(_known(pattern, hits, possible))
    excluded: set[str] = set()
    for pattern in exclude:
        hits = [name for name in possible if _matches(name, pattern)]
        excluded |= set(hits if _named(model, pattern) else _known(pattern, hits, possible))
    chosen = _with_sharers(model, possible, chosen - excluded, excluded)
    if not chosen:
        what = (
            "the patterns leave no layer" if possible else f"{type(model).__name__} has no weight of two or more axes"
        )
        raise InputError(f"nothing left to mask: {what} (include={include}, exclude={exclude})")
    return [name for name in possible if name in chosen]


def _with_sharers(model: nn.Module, possible: list[str], chosen: set[str], excluded: set[str]) -> set[str]:
    """Adds to the chosen names the others of the same parameters, which can only be masked under all of them."""
    parameters = {name: id(model.get_parameter(name)) for name in possible}
    wanted = {parameters[name]: name for name in chosen}
    sharers = {name for name, parameter in parameters.items() if parameter in wanted}
    for name in sorted(sharers & excluded):
        raise InputError(f"{name} and {wanted[parameters[name]]} are one parameter: exclude both or neither")
    return sharers


def _matches(parameter: str, pattern: str) -> bool:
    """Whether ``pattern`` names the parameter, its layer, or a block that the layer is in."""
    layer = parameter.rpartition(".")[0]
    return any(fnmatchcase(name, form) for name in (parameter, layer) for form in (pattern, f"{pattern}.*"))


def _named(model: nn.Module, pattern: str) -> str | None:
    """Returns the kind of the first layer that ``pattern`` names, whether or not it has a weight to mask."""
    return next(
        (type(layer).__name__ for name, layer in model.named_modules() if name and fnmatchcase(name, pattern)), None
    )


def _known(pattern: str, hits: list[str], possible: list[str]) -> list[str]:
    if not hits:
        layers = [name.removesuffix(".weight") for name in possible]
        close = difflib.get_close_matches(pattern.replace("*", ""), layers, n=3, cutoff=0.4) or layers[:3]
        raise InputError(
            f"layer pattern {pattern!r} matches no layer of {len(layers)}; the nearest: {', '.join(close)}"
        )
    return hits
