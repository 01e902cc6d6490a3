"""Embedding models: any timm backbone, a pooling, an optional projection, unit norm."""

from hgsl.models.embedder import Embedder, create_embedder
from hgsl.models.pooling import POOLINGS
from hgsl.models.pretrained import push_to_hub, save_pretrained
from hgsl.models.storage import load_embedder, save_embedder

__all__ = [
    "POOLINGS",
    "Embedder",
    "create_embedder",
    "load_embedder",
    "push_to_hub",
    "save_embedder",
    "save_pretrained",
]
