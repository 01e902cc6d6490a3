"""Poolings by name: from the last feature map of the backbone to one vector per image.

A new pooling is one file and one line in ``POOLINGS``: a module that maps feature maps (B, C, h, w), or tokens laid out
as (B, C, N, 1), to (B, expansion * C), with ``expansion`` as an attribute; it is constructed without arguments. One
that reads something else of the backbone names it in ``inputs``, see :data:`hgsl.models.features.INPUTS`.
"""

from torch import nn

from hgsl.models.pooling.avg_max import AvgPool, MaxAvgPool, MaxPool
from hgsl.models.pooling.gem import GeMPool
from hgsl.models.pooling.scda import SCDAPool
from hgsl.models.pooling.tokens import HeadPool, TokenAvgPool, TokenPool

POOLINGS: dict[str, type[nn.Module]] = {
    "avg": AvgPool,
    "max": MaxPool,
    "maxavg": MaxAvgPool,
    "gem": GeMPool,
    "scda": SCDAPool,
    "token": TokenPool,
    "token_avg": TokenAvgPool,
    "head": HeadPool,
}
CHOICES = ("auto",)  # other names in the settings: the pooling that fits the backbone

__all__ = [
    "POOLINGS",
    "AvgPool",
    "GeMPool",
    "HeadPool",
    "MaxAvgPool",
    "MaxPool",
    "SCDAPool",
    "TokenAvgPool",
    "TokenPool",
]
