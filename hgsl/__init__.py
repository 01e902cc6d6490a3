"""hgsl: train, evaluate, show and ship models for fine-grained image retrieval.

The public names are loaded when they are first used, so that ``import hgsl`` costs little.
"""

import importlib
from typing import TYPE_CHECKING, Any

from hgsl.version import __version__

if TYPE_CHECKING:
    from hgsl.data import build_dataset
    from hgsl.evaluation import evaluate_embeddings
    from hgsl.losses import HardGlobalSoftminLoss
    from hgsl.models import create_embedder
    from hgsl.sparsity import SoftMaskedConv2d, SoftMaskedLinear, sparsify

_HOME = {
    "HardGlobalSoftminLoss": "hgsl.losses",
    "SoftMaskedConv2d": "hgsl.sparsity",
    "SoftMaskedLinear": "hgsl.sparsity",
    "build_dataset": "hgsl.data",
    "create_embedder": "hgsl.models",
    "evaluate_embeddings": "hgsl.evaluation",
    "sparsify": "hgsl.sparsity",
}

__all__ = [
    "HardGlobalSoftminLoss",
    "SoftMaskedConv2d",
    "SoftMaskedLinear",
    "__version__",
    "build_dataset",
    "create_embedder",
    "evaluate_embeddings",
    "sparsify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'hgsl' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
