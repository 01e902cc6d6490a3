"""Losses with class centers. ``LOSSES`` lists those that a config can name; a new loss is one file and one line in it.

A class in it takes ``num_classes``, ``embedding_size`` and the entries of ``loss.options`` as keyword arguments and is
called with embeddings ``(B, D)`` and labels ``(B,)``. Its parameters of two or more dimensions are optimized at the
learning rate of the class centers.
"""

from torch import nn

from hgsl.losses.deferral import DeferredChecks, deferred_checks
from hgsl.losses.hgsl import HardGlobalSoftminLoss
from hgsl.losses.optimizers import attach_optimizer, parameter_groups, sparse_optimizer
from hgsl.losses.schedule import scheduled_top_k
from hgsl.losses.sharded import ShardedHardGlobalSoftminLoss

LOSSES: dict[str, type[nn.Module]] = {
    "HardGlobalSoftminLoss": HardGlobalSoftminLoss,
}

__all__ = [
    "LOSSES",
    "DeferredChecks",
    "HardGlobalSoftminLoss",
    "ShardedHardGlobalSoftminLoss",
    "attach_optimizer",
    "deferred_checks",
    "parameter_groups",
    "scheduled_top_k",
    "sparse_optimizer",
]
