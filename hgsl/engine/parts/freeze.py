"""Freezing of parts of a model."""

import re
from collections.abc import Sequence

from timm.models import group_parameters
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from hgsl.common.errors import InputError
from hgsl.models import Embedder


def freeze(model: Embedder, part_name: str) -> None:
    """Freezes the parameters of ``none``, ``batch_norm`` (affine parameters), ``stem``, ``backbone`` or ``features``.

    ``features`` are backbone and pooling. The stem is the first group of timm's ``group_matcher``: the layers before
    the first stage, with position embeddings and tokens.

    Raises:
        InputError: timm does not define the stem of this backbone.
    """
    for part in _frozen(model, part_name):
        part.requires_grad_(False)


def freeze_depth(model: Embedder, depth: float) -> None:
    """Freezes the first layers of the backbone: of timm's coarse groups, the share ``depth``, rounded down.

    The groups are the stem and the stages of a convolutional network, or the embeddings and the blocks of a
    transformer. A step has no backward pass through them.

    Raises:
        InputError: timm does not define the groups of this backbone.
    """
    for part in _first_layers(model, depth):
        part.requires_grad_(False)


def train_mode(model: Embedder, frozen: str, depth: float = 0.0) -> None:
    """Puts the model in training mode, except what is frozen: its batch norms keep their statistics."""
    model.train()
    for part in [*_frozen(model, frozen), *_first_layers(model, depth)]:
        if isinstance(part, nn.Module):
            part.eval()


def _frozen(model: Embedder, part_name: str) -> Sequence[nn.Module | nn.Parameter]:
    if part_name == "features":
        return [model.backbone, model.pooling]
    if part_name == "backbone":
        return [model.backbone]
    if part_name == "stem":
        return _stem(model.backbone)
    if part_name == "batch_norm":
        # timm's fused norms (BatchNormAct2d) derive from the same base.
        return [module for module in model.modules() if isinstance(module, _BatchNorm)]
    return []


def _stem(backbone: nn.Module) -> list[nn.Module | nn.Parameter]:
    """The modules of the stem's parameters, and the stem's parameters outside any module, such as a class token."""
    pattern = _stem_pattern(backbone)
    names = [name for name, _ in backbone.named_parameters() if pattern and re.match(pattern, name)]
    if not names:
        raise InputError(
            f"timm does not define the stem of {type(backbone).__name__}: "
            "set model.freeze to batch_norm, backbone or none"
        )
    return _owners(backbone, names)


def _first_layers(model: Embedder, depth: float) -> list[nn.Module | nn.Parameter]:
    if depth == 0:  # also of a classifier, which has no backbone
        return []
    backbone = model.backbone
    try:
        groups = group_parameters(backbone, backbone.group_matcher(coarse=True))  # type: ignore[operator]
    except (AssertionError, AttributeError, KeyError, TypeError) as error:
        raise InputError(
            f"timm does not define the groups of layers of {type(backbone).__name__}: set model.freeze_depth to 0"
        ) from error
    first = sorted(groups)[: int(depth * len(groups))]
    return _owners(backbone, [name for group in first for name in groups[group]])


def _owners(backbone: nn.Module, names: Sequence[str]) -> list[nn.Module | nn.Parameter]:
    """The modules that hold the parameters of these names, and those parameters that are in no module."""
    return [
        backbone.get_submodule(name.rpartition(".")[0]) if "." in name else getattr(backbone, name) for name in names
    ]


def _stem_pattern(backbone: nn.Module) -> str | None:
    """The regular expression of the stem's parameter names, or None where the backbone defines none."""
    try:
        pattern = backbone.group_matcher(coarse=True)["stem"]  # type: ignore[operator]
    except (AssertionError, AttributeError, KeyError, TypeError):
        return None
    return pattern if isinstance(pattern, str) else None
