"""Selection of the weights to mask by patterns of layer and parameter names."""

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from hgsl.common.errors import InputError
from hgsl.common.suggestions import similar

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def select_weights(model: nn.Module, include: str | Sequence[str], exclude: str | Sequence[str]) -> list[str]:
    """Returns the names of the parameters to mask, in the order of the network.

    A parameter that several layers share is selected under all its names.

    Args:
        model: A plain network.
        include: Patterns of layers or parameters; empty selects the weights of all convolutions, linear layers and
            attention projections.
        exclude: Patterns of layers or parameters that are not masked.

    Raises:
        InputError: A pattern matches nothing, or only some names of a shared parameter; or nothing is selected.
    """
    include, exclude = _as_list(include), _as_list(exclude)
    candidates = _candidates(model)
    defaults = [name for name, is_default in candidates.items() if is_default]
    included = _included(model, include, list(candidates), defaults) if include else set(defaults)
    excluded = _excluded(model, exclude, list(candidates))
    selected = _with_aliases(model, list(candidates), included - excluded, excluded)
    if not selected:
        raise InputError(
            f"nothing left to mask: {_emptiness(model, candidates, include)} (include={include}, exclude={exclude})"
        )
    return [name for name in candidates if name in selected]


def _as_list(patterns: str | Sequence[str]) -> list[str]:
    listed = [patterns] if isinstance(patterns, str) or not isinstance(patterns, Iterable) else list(patterns)
    for pattern in listed:
        if not isinstance(pattern, str):
            raise InputError(f"layer pattern {pattern!r:.80}: expected text, such as 'layer1.*', or a list of them")
    return listed


def _candidates(model: nn.Module) -> dict[str, bool]:
    """Returns the names of all parameters that a mask fits, and whether each is masked by default."""
    candidates: dict[str, bool] = {}
    for layer_name, layer in model.named_modules(remove_duplicate=False):
        for tensor, parameter in layer._parameters.items():
            if parameter is not None and _fits(parameter):
                candidates[f"{layer_name}.{tensor}" if layer_name else tensor] = _is_default(layer, tensor)
    return candidates


def _fits(parameter: Tensor) -> bool:
    return parameter.ndim >= 2 and parameter.dtype in _DTYPES and parameter.numel() > 0


def _is_default(layer: nn.Module, tensor: str) -> bool:
    if isinstance(layer, nn.MultiheadAttention):
        return tensor.endswith("proj_weight")
    return isinstance(layer, _ConvNd | nn.Linear) and tensor == "weight"


def _included(model: nn.Module, patterns: list[str], candidates: list[str], defaults: list[str]) -> set[str]:
    """Returns the matches of the patterns: weights that are masked by default, or else any parameters."""
    included: set[str] = set()
    for pattern in patterns:
        matches = _matching(defaults, pattern) or _matching(candidates, pattern)
        if not matches:
            layer_type = _type_of_layer(model, pattern)
            if layer_type:
                raise InputError(
                    f"layer pattern {pattern!r} names a {layer_type}, which has no weight of two or more axes"
                )
            raise _no_match(pattern, candidates)
        included |= set(matches)
    return included


def _excluded(model: nn.Module, patterns: list[str], candidates: list[str]) -> set[str]:
    """Returns the matches of the patterns, which may also match layers without a weight to mask."""
    excluded: set[str] = set()
    for pattern in patterns:
        matches = _matching(candidates, pattern)
        if not matches and _type_of_layer(model, pattern) is None:
            raise _no_match(pattern, candidates)
        excluded |= set(matches)
    return excluded


def _with_aliases(model: nn.Module, candidates: list[str], selected: set[str], excluded: set[str]) -> set[str]:
    """Adds the other names of the selected parameters, since a mask acts under all names of a parameter."""
    parameters = {name: id(model.get_parameter(name)) for name in candidates}
    selected_parameters = {parameters[name]: name for name in selected}
    aliases = {name for name, parameter in parameters.items() if parameter in selected_parameters}
    for name in sorted(aliases & excluded):
        raise InputError(
            f"{name} and {selected_parameters[parameters[name]]} are one parameter: exclude both or neither"
        )
    return aliases


def _matching(names: list[str], pattern: str) -> list[str]:
    """Returns the parameters that ``pattern`` names, by their own name, their layer's, or that of a block around it."""
    forms = (pattern, f"{pattern}.*")
    return [
        name for name in names if any(fnmatchcase(n, form) for n in (name, name.rpartition(".")[0]) for form in forms)
    ]


def _type_of_layer(model: nn.Module, pattern: str) -> str | None:
    """Returns the type of the first layer that ``pattern`` names, whether or not it has a weight to mask."""
    return next(
        (type(layer).__name__ for name, layer in model.named_modules() if name and fnmatchcase(name, pattern)), None
    )


def _no_match(pattern: str, candidates: list[str]) -> InputError:
    layers = [name.removesuffix(".weight") for name in candidates]
    close = similar(pattern.replace("*", "").strip("."), layers)
    hint = f"did you mean {' or '.join(close)}?" if close else f"they are named like {', '.join(layers[:3])}"
    return InputError(f"layer pattern {pattern!r} matches no layer of {len(layers)}: {hint}")


def _emptiness(model: nn.Module, candidates: dict[str, bool], include: list[str]) -> str:
    """Explains why no weight is selected."""
    if not candidates:
        return f"{type(model).__name__} has no weight of two or more axes in float16, bfloat16, float32 or float64"
    if not include and not any(candidates.values()):
        names = ", ".join(list(candidates)[:3])
        return f"{type(model).__name__} has no convolution, linear layer or attention projection: include {names}"
    return "the patterns leave no layer"
