"""Masked layers for hand-written networks: ``nn.Conv2d`` and ``nn.Linear`` with a soft mask on their weight."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from hgsl.common.errors import InputError
from hgsl.sparsity.masks import MaskedNet
from hgsl.sparsity.soft_mask import SoftMask, attach


class _MaskedLayer(MaskedNet):
    """Base class of masked layers: the mask of their weight, at its temperature and mode or at those of one call."""

    weight: Tensor

    def compute_mask(self, temp: float | None = None, ticket: bool | None = None) -> Tensor:
        """Returns the mask, of the shape of the weight; ``temp`` and ``ticket`` override its temperature and mode.

        Raises:
            InputError: ``temp`` is not positive, or the layer is finalized.
        """
        if not parametrize.is_parametrized(self):
            raise InputError(f"this {type(self).__name__} is finalized: its mask is multiplied into its weight")
        chain: Any = self.parametrizations
        return chain.weight[0].mask(temp, ticket)

    def _masked_weight(self, temp: float | None, ticket: bool | None) -> Tensor:
        if not parametrize.is_parametrized(self):  # finalized: there is no mask
            return self.weight
        chain: Any = self.parametrizations
        return chain.weight[0](chain.weight.original, temp, ticket)

    def _mask_weight(self, initial_value: float) -> None:
        attach(self, "weight", SoftMask(self.weight.shape, initial_value, None, self.weight.device, self.weight.dtype))


class SoftMaskedConv2d(_MaskedLayer, nn.Conv2d):
    """``nn.Conv2d`` whose weight is masked; called as ``layer(x)``, or ``layer(x, temp=..., ticket=...)``.

    Args:
        *args: Arguments of ``nn.Conv2d``.
        mask_initial_value: s0, the initial value of every score.
        **kwargs: Keyword arguments of ``nn.Conv2d``.
    """

    def __init__(self, *args: Any, mask_initial_value: float = 0.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._mask_weight(mask_initial_value)

    def forward(self, x: Tensor, temp: float | None = None, ticket: bool | None = None) -> Tensor:
        """Convolves ``x``, ``(B, C, H, W)``, with the masked weight."""
        return self._conv_forward(x, self._masked_weight(temp, ticket), self.bias)


class SoftMaskedLinear(_MaskedLayer, nn.Linear):
    """``nn.Linear`` whose weight is masked; called as ``layer(x)``, or ``layer(x, temp=..., ticket=...)``.

    Args:
        *args: Arguments of ``nn.Linear``.
        mask_initial_value: s0, the initial value of every score.
        **kwargs: Keyword arguments of ``nn.Linear``.
    """

    def __init__(self, *args: Any, mask_initial_value: float = 0.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._mask_weight(mask_initial_value)

    def forward(self, x: Tensor, temp: float | None = None, ticket: bool | None = None) -> Tensor:
        """Maps ``x``, ``(..., in_features)``, with the masked weight."""
        return F.linear(x, self._masked_weight(temp, ticket), self.bias)
