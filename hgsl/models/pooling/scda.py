"""Selective convolutional descriptor aggregation (SCDA)."""

import torch
from torch import Tensor, nn


class SCDAPool(nn.Module):
    """Max and average pooling over the positions whose activation is above the mean: (B, C, h, w) -> (B, 2C).

    The activation of a position is the sum over its channels. Positions below the mean of their image, mostly
    background, are left out. Where all activations are equal, every position is used, so the result is always defined.

    Source: Wei, Luo, Wu, Zhou: Selective Convolutional Descriptor Aggregation for Fine-Grained Image Retrieval, TIP
    2017, without its largest-component step.
    """

    expansion = 2

    def forward(self, features: Tensor) -> Tensor:
        activation = features.sum(dim=1, keepdim=True)  # (B, 1, h, w)
        selected = activation >= activation.mean(dim=(2, 3), keepdim=True)
        selected |= ~selected.any(dim=(2, 3), keepdim=True)  # by rounding, a mean of equal activations may exceed them
        largest = features.masked_fill(~selected, -torch.inf).amax(dim=(2, 3))
        mean = (features * selected).sum(dim=(2, 3)) / selected.sum(dim=(2, 3))
        return torch.cat([largest, mean], dim=1)
