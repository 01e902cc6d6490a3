"""Losses with class centers. ``LOSSES`` holds those that a config names: adding one is one file, and one line there.

Such a class takes ``num_classes``, ``embedding_size`` and the config's ``loss.options`` by keyword, and is called with
embeddings ``(B, D)`` and labels ``(B,)``; its parameters of two dimensions train at the rate of the class centers.
"""

from torch import nn

from hgsl.losses.hgsl import HardGlobalSoftminLoss
from hgsl.losses.optimizers import attach_optimizer, parameter_groups, sparse_optimizer
from hgsl.losses.schedule import scheduled_top_k
from hgsl.losses.sharded import ShardedHardGlobalSoftminLoss

LOSSES: dict[str, type[nn.Module]] = {
    "HardGlobalSoftminLoss": HardGlobalSoftminLoss,
}

__all__ = [
    "LOSSES",
    "HardGlobalSoftminLoss",
    "ShardedHardGlobalSoftminLoss",
    "attach_optimizer",
    "parameter_groups",
    "scheduled_top_k",
    "sparse_optimizer",
]
