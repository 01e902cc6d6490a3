"""Parts of a model that do not train."""

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from hgsl.models import Embedder


def freeze(model: Embedder, what: str) -> None:
    """Stops the gradient of ``what``: ``none``, ``batch_norm`` (affine parameters) or ``backbone``."""
    for module in _frozen(model, what):
        module.requires_grad_(False)


def train_mode(model: Embedder, what: str) -> None:
    """Puts the model in training mode, except what is frozen: its batch norms keep their statistics."""
    model.train()
    for module in _frozen(model, what):
        module.eval()


def _frozen(model: Embedder, what: str) -> list[nn.Module]:
    if what == "backbone":
        return [model.backbone]
    if what == "batch_norm":
        # timm's fused norms (BatchNormAct2d) derive from the same base.
        return [module for module in model.modules() if isinstance(module, _BatchNorm)]
    return []
