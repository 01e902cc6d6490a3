"""The masked tensors of a network: which layers hold them, under which name, and with which mask."""

from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from hgsl.common.errors import InputError
from hgsl.sparsity.compatibility import check_copyable
from hgsl.sparsity.soft_mask import ChannelMask, SoftMask


def masked_tensors(module: nn.Module) -> Iterator[tuple[str, nn.Module, str, SoftMask | ChannelMask]]:
    """Yields (layer name, layer, tensor name, mask) of each masked tensor."""
    for name, layer in module.named_modules():
        chains: Any = layer.parametrizations if parametrize.is_parametrized(layer) else {}
        for tensor, chain in chains.items():
            if isinstance(chain[0], SoftMask | ChannelMask):
                yield name, layer, tensor, chain[0]


def masked_weights(module: nn.Module) -> Iterator[tuple[str, str, nn.Parameter, SoftMask | ChannelMask]]:
    """Yields (layer name, tensor name, unmasked weight, mask) of each masked weight; biases and norms are left out."""
    for name, layer, tensor, mask in masked_tensors(module):
        weight = layer.get_parameter(f"parametrizations.{tensor}.original")
        if weight.ndim > 1:
            yield name, tensor, weight, mask


def check_finalizable(module: nn.Module) -> None:
    """Checks that a network can be copied without its masks.

    Raises:
        InputError: A masked tensor has a parametrization beside its mask, or the network cannot be copied at all.
    """
    check_copyable(module)
    for name, layer, _, _ in masked_tensors(module):
        chains: Any = layer.parametrizations
        for tensor, chain in chains.items():
            if not all(isinstance(parametrization, SoftMask | ChannelMask) for parametrization in chain):
                raise InputError(
                    f"{tensor} of {name or type(layer).__name__} has a parametrization beside its mask: "
                    "remove it first (torch.nn.utils.parametrize.remove_parametrizations)"
                )
