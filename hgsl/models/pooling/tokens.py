"""Poolings by the class token, alone or with the mean of the patch tokens, and the model's own pooling."""

import torch
from torch import Tensor, nn


class TokenPool(nn.Module):
    """The class token, as the last norm of the backbone leaves it: (B, C) -> (B, C)."""

    inputs = ("class_token",)
    expansion = 1

    def forward(self, class_token: Tensor) -> Tensor:
        return class_token


class TokenAvgPool(nn.Module):
    """Class token and mean of the patch tokens side by side: (B, C) and (B, C, N, 1) -> (B, 2C), the token first.

    Register and distillation tokens are in neither.

    Source: Oquab et al., "DINOv2: Learning Robust Visual Features without Supervision", TMLR 2024, linear evaluation.
    """

    inputs = ("class_token", "features")
    expansion = 2

    def forward(self, class_token: Tensor, features: Tensor) -> Tensor:
        return torch.cat([class_token, features.mean(dim=(2, 3))], dim=1)


class HeadPool(nn.Module):
    """The backbone's own pooling, with its norms and layers before the classifier: (B, ``head_hidden_size``), as it is.

    That is timm's ``forward_head(features, pre_logits=True)``: attention pooling, MAP heads, global pooling, fc_norm.
    """

    inputs = ("head",)
    expansion = 1  # of head_hidden_size, not of num_features

    def forward(self, pooled: Tensor) -> Tensor:
        return pooled
