"""Losses that own their class centers; add one by adding a file and a line to ``LOSSES``."""

from hgsl.losses.hgsl import HardGlobalSoftminLoss
from hgsl.losses.optimizers import attach_optimizer, parameter_groups, sparse_optimizer
from hgsl.losses.schedule import scheduled_top_k
from hgsl.losses.sharded import ShardedHardGlobalSoftminLoss

LOSSES = {"hgsl": HardGlobalSoftminLoss, "sharded_hgsl": ShardedHardGlobalSoftminLoss}

__all__ = [
    "LOSSES",
    "HardGlobalSoftminLoss",
    "ShardedHardGlobalSoftminLoss",
    "attach_optimizer",
    "parameter_groups",
    "scheduled_top_k",
    "sparse_optimizer",
]
