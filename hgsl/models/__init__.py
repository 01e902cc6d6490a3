"""Embedding models: a timm backbone, a pooling, an optional linear projection, L2 normalization."""

from hgsl.models.create import create_embedder
from hgsl.models.embedder import Embedder
from hgsl.models.pooling import POOLINGS
from hgsl.models.storage.checkpoint import load_embedder, save_embedder
from hgsl.models.storage.pretrained import push_to_hub, save_pretrained

__all__ = [
    "POOLINGS",
    "Embedder",
    "create_embedder",
    "load_embedder",
    "push_to_hub",
    "save_embedder",
    "save_pretrained",
]
