"""Freezing of parts of a model."""

import re
from collections.abc import Sequence

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


def train_mode(model: Embedder, frozen: str) -> None:
    """Puts the model in training mode, except what is frozen: its batch norms keep their statistics."""
    model.train()
    for part in _frozen(model, frozen):
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
