"""hgsl: train, evaluate, show and ship models for fine-grained image retrieval.

Public names and subpackages are imported on first use, so that ``import hgsl`` is fast and changes nothing in the
process.
"""

import importlib

from hgsl.version import __version__

TYPE_CHECKING = False  # type checkers read it as True; importing typing would take most of the time of this import
if TYPE_CHECKING:
    from hgsl import data as data
    from hgsl import engine as engine
    from hgsl import evaluation as evaluation
    from hgsl import export as export
    from hgsl import losses as losses
    from hgsl import models as models
    from hgsl import search as search
    from hgsl import sparsity as sparsity
    from hgsl.cli._load_config import load_config
    from hgsl.common.errors import InputError
    from hgsl.data import build_dataset
    from hgsl.engine.callbacks import Callback
    from hgsl.engine.run import train
    from hgsl.evaluation import evaluate_embeddings
    from hgsl.losses import HardGlobalSoftminLoss
    from hgsl.models import create_embedder, load_embedder, push_to_hub, save_pretrained
    from hgsl.search import SearchIndex
    from hgsl.sparsity import SoftMaskedConv2d, SoftMaskedLinear, sparsify

_MODULES = {
    "Callback": "hgsl.engine.callbacks",
    "HardGlobalSoftminLoss": "hgsl.losses",
    "InputError": "hgsl.common.errors",
    "SearchIndex": "hgsl.search",
    "SoftMaskedConv2d": "hgsl.sparsity",
    "SoftMaskedLinear": "hgsl.sparsity",
    "build_dataset": "hgsl.data",
    "create_embedder": "hgsl.models",
    "evaluate_embeddings": "hgsl.evaluation",
    "load_config": "hgsl.cli._load_config",
    "load_embedder": "hgsl.models",
    "push_to_hub": "hgsl.models",
    "save_pretrained": "hgsl.models",
    "sparsify": "hgsl.sparsity",
    "train": "hgsl.engine.run",
}

_SUBPACKAGES = ("data", "engine", "evaluation", "export", "losses", "models", "search", "sparsity")

__all__ = [
    "Callback",
    "HardGlobalSoftminLoss",
    "InputError",
    "SearchIndex",
    "SoftMaskedConv2d",
    "SoftMaskedLinear",
    "__version__",
    "build_dataset",
    "create_embedder",
    "evaluate_embeddings",
    "load_config",
    "load_embedder",
    "push_to_hub",
    "save_pretrained",
    "sparsify",
    "train",
]


if not TYPE_CHECKING:  # a type checker that saw it would accept every name

    def __getattr__(name):
        if name in _SUBPACKAGES:
            return importlib.import_module(f"hgsl.{name}")
        if name not in _MODULES:
            raise AttributeError(f"module 'hgsl' has no attribute {name!r}")
        return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, *_SUBPACKAGES])
