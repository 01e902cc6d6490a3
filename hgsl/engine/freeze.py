"""Parts of a model that do not train."""

import re

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from hgsl.common.errors import InputError
from hgsl.models import Embedder


def freeze(model: Embedder, what: str) -> None:
    """Stops the gradient of ``none``, ``batch_norm`` (affine parameters), ``stem``, ``backbone`` or ``features``.

    Features are what backbone and pooling give. The stem is what timm's own ``group_matcher`` puts first: the layers
    before the first stage.
    """
    for module in _frozen(model, what):
        module.requires_grad_(False)


def train_mode(model: Embedder, what: str) -> None:
    """Puts the model in training mode, except what is frozen: its batch norms keep their statistics."""
    model.train()
    for module in _frozen(model, what):
        module.eval()


def _frozen(model: Embedder, what: str) -> list[nn.Module]:
    if what == "features":
        return [model.backbone, model.pooling]
    if what == "backbone":
        return [model.backbone]
    if what == "stem":
        return _stem(model.backbone)
    if what == "batch_norm":
        # timm's fused norms (BatchNormAct2d) derive from the same base.
        return [module for module in model.modules() if isinstance(module, _BatchNorm)]
    return []


def _stem(backbone: nn.Module) -> list[nn.Module]:
    if not hasattr(backbone, "group_matcher"):
        raise InputError(
            f"{type(backbone).__name__} does not tell which of its layers are the stem: use another freeze"
        )
    pattern = backbone.group_matcher(coarse=True)["stem"]  # type: ignore[operator]
    names = [name for name, _ in backbone.named_parameters() if re.match(pattern, name)]
    return [backbone.get_submodule(name.rpartition(".")[0]) for name in names if "." in name]
