"""Masked layers for hand-written networks: ``nn.Conv2d`` and ``nn.Linear`` with a soft mask on their weight."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from hgsl.sparsity.masks import MaskedNet
from hgsl.sparsity.soft_mask import SoftMask, attach


class SoftMaskedConv2d(MaskedNet, nn.Conv2d):
    """``nn.Conv2d`` whose weight is masked; called as ``layer(x)``, or ``layer(x, temp=..., ticket=...)``.

    Args:
        *args: Those of ``nn.Conv2d``.
        mask_initial_value: s0, where every score starts.
        **kwargs: Those of ``nn.Conv2d``.
    """

    def __init__(self, *args: Any, mask_initial_value: float = 0.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _mask_weight(self, mask_initial_value)

    def compute_mask(self, temp: float | None = None, ticket: bool | None = None) -> Tensor:
        """Returns the mask, the shape of the weight, in the state held by the controller or in the one given."""
        return _mask_of(self).mask(temp, ticket)

    def forward(self, x: Tensor, temp: float | None = None, ticket: bool | None = None) -> Tensor:
        """Convolves ``x``, ``(B, C, H, W)``, with the masked weight."""
        return self._conv_forward(x, _masked_weight(self, temp, ticket), self.bias)


class SoftMaskedLinear(MaskedNet, nn.Linear):
    """``nn.Linear`` whose weight is masked; called as ``layer(x)``, or ``layer(x, temp=..., ticket=...)``.

    Args:
        *args: Those of ``nn.Linear``.
        mask_initial_value: s0, where every score starts.
        **kwargs: Those of ``nn.Linear``.
    """

    def __init__(self, *args: Any, mask_initial_value: float = 0.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _mask_weight(self, mask_initial_value)

    def compute_mask(self, temp: float | None = None, ticket: bool | None = None) -> Tensor:
        """Returns the mask, the shape of the weight, in the state held by the controller or in the one given."""
        return _mask_of(self).mask(temp, ticket)

    def forward(self, x: Tensor, temp: float | None = None, ticket: bool | None = None) -> Tensor:
        """Maps ``x``, ``(..., in_features)``, with the masked weight."""
        return F.linear(x, _masked_weight(self, temp, ticket), self.bias)


def _mask_weight(layer: nn.Conv2d | nn.Linear, initial_value: float) -> None:
    weight = layer.weight
    attach(layer, "weight", SoftMask(weight.shape, initial_value, device=weight.device, dtype=weight.dtype))


def _mask_of(layer: nn.Conv2d | nn.Linear) -> SoftMask:
    masked: Any = layer.parametrizations
    return masked.weight[0]


def _masked_weight(layer: nn.Conv2d | nn.Linear, temp: float | None, ticket: bool | None) -> Tensor:
    if not parametrize.is_parametrized(layer):  # finalized: the mask is in the weight
        return layer.weight
    masked: Any = layer.parametrizations
    return masked.weight.original * _mask_of(layer).mask(temp, ticket)
