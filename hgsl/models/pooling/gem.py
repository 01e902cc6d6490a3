"""Generalized-mean pooling."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hgsl.common.errors import InputError


class GeMPool(nn.Module):
    """Generalized mean, (mean over positions of max(x, eps)^p)^(1/p): (B, C, h, w) -> (B, C).

    The exponent p is learned, one for all channels, and starts at 3; p = 1 is the average, p -> infinity the maximum.

    Source: Radenović, Tolias, Chum: Fine-tuning CNN Image Retrieval with No Human Annotation, TPAMI 2019.

    Raises:
        InputError: p or eps is not positive and finite.
    """

    expansion = 1

    def __init__(self, p: float = 3.0, eps: float = 1e-6) -> None:
        super().__init__()
        if not 0 < p < math.inf or not 0 < eps < math.inf:
            raise InputError(f"p and eps of generalized-mean pooling must be positive and finite, found {p} and {eps}")
        self.p = nn.Parameter(torch.tensor(float(p)))
        self.eps = eps

    def forward(self, features: Tensor) -> Tensor:
        # Powers of half-precision features overflow, so the mean is taken in float32.
        powered = features.float().clamp(min=self.eps).pow(self.p)
        return F.adaptive_avg_pool2d(powered, 1).flatten(1).pow(1 / self.p)
