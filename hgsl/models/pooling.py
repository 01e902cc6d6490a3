"""From the backbone's last features to one vector an image.

A pooling is called with feature maps (B, C, h, w), or with tokens laid out as (B, C, N, 1), and returns (B, C').
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class AvgPool(nn.Module):
    """The mean over all places: (B, C, h, w) -> (B, C)."""

    expansion = 1

    def forward(self, features: Tensor) -> Tensor:
        return features.mean(dim=(2, 3))


class MaxPool(nn.Module):
    """The largest value over all places: (B, C, h, w) -> (B, C)."""

    expansion = 1

    def forward(self, features: Tensor) -> Tensor:
        return features.amax(dim=(2, 3))


class MaxAvgPool(nn.Module):
    """Max and average pooling side by side: (B, C, h, w) -> (B, 2C), the maxima first.

    Source: the embedding of the published Hard Global Softmin recipe.
    """

    expansion = 2

    def forward(self, features: Tensor) -> Tensor:
        return torch.cat([features.amax(dim=(2, 3)), features.mean(dim=(2, 3))], dim=1)


class SCDAPool(nn.Module):
    """Max and average pooling over the places whose activation is above the mean: (B, C, h, w) -> (B, 2C).

    The activation of a place is the sum over its channels; places below the mean of their image, mostly background,
    do not count. Where none is above it, as all are alike, every place counts, so the result is always defined.

    Source: Wei, Luo, Wu, Zhou: Selective Convolutional Descriptor Aggregation for Fine-Grained Image Retrieval, TIP
    2017, without its largest-component step.
    """

    expansion = 2

    def forward(self, features: Tensor) -> Tensor:
        activation = features.sum(dim=1, keepdim=True)  # (B, 1, h, w)
        chosen = activation >= activation.mean(dim=(2, 3), keepdim=True)
        chosen |= ~chosen.any(dim=(2, 3), keepdim=True)  # the mean of equal places may round to above them
        largest = features.masked_fill(~chosen, -torch.inf).amax(dim=(2, 3))
        mean = (features * chosen).sum(dim=(2, 3)) / chosen.sum(dim=(2, 3))
        return torch.cat([largest, mean], dim=1)


class GeMPool(nn.Module):
    """Generalized mean, (mean over places of max(x, eps)^p)^(1/p): (B, C, h, w) -> (B, C).

    The exponent p is learned, one for all channels, and starts at 3; p = 1 is the average, p -> infinity the maximum.

    Source: Radenović, Tolias, Chum: Fine-tuning CNN Image Retrieval with No Human Annotation, TPAMI 2019.
    """

    expansion = 1

    def __init__(self, p: float = 3.0, eps: float = 1e-6) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.tensor(float(p)))
        self.eps = eps

    def forward(self, features: Tensor) -> Tensor:
        # Powers of half-precision features overflow, so the mean is taken in float32.
        powered = features.float().clamp(min=self.eps).pow(self.p)
        return F.adaptive_avg_pool2d(powered, 1).flatten(1).pow(1 / self.p)


POOLINGS: dict[str, type[nn.Module]] = {
    "avg": AvgPool,
    "max": MaxPool,
    "maxavg": MaxAvgPool,
    "gem": GeMPool,
    "scda": SCDAPool,
}
