"""Continuous Sparsification: masks trained with the weights, tickets, removal of channels, sparse files."""

from hgsl.sparsity.benchmark import benchmark
from hgsl.sparsity.channels.compact import compact
from hgsl.sparsity.layers import SoftMaskedConv2d, SoftMaskedLinear
from hgsl.sparsity.masks import MaskedNet, Masks
from hgsl.sparsity.reconstruction import reconstruct
from hgsl.sparsity.soft_mask import temperature_at
from hgsl.sparsity.sparsify import sparsify
from hgsl.sparsity.storage import load, save

__all__ = [
    "MaskedNet",
    "Masks",
    "SoftMaskedConv2d",
    "SoftMaskedLinear",
    "benchmark",
    "compact",
    "load",
    "reconstruct",
    "save",
    "sparsify",
    "temperature_at",
]
