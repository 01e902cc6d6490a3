"""Average pooling, max pooling, and their concatenation."""

import torch
from torch import Tensor, nn


class AvgPool(nn.Module):
    """Mean over all positions: (B, C, h, w) -> (B, C)."""

    expansion = 1

    def forward(self, features: Tensor) -> Tensor:
        return features.mean(dim=(2, 3))


class MaxPool(nn.Module):
    """Maximum over all positions: (B, C, h, w) -> (B, C)."""

    expansion = 1

    def forward(self, features: Tensor) -> Tensor:
        return features.amax(dim=(2, 3))


class MaxAvgPool(nn.Module):
    """Concatenation of max and average pooling: (B, C, h, w) -> (B, 2C), the maxima first.

    Source: the embedding of the published Hard Global Softmin recipe.
    """

    expansion = 2

    def forward(self, features: Tensor) -> Tensor:
        return torch.cat([features.amax(dim=(2, 3)), features.mean(dim=(2, 3))], dim=1)
