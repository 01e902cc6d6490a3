"""How often a forward pass uses each weight, so that a penalty can weigh time rather than size."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from hgsl.common.errors import InputError
from hgsl.sparsity.masks import masked_tensors
from hgsl.sparsity.soft_mask import SoftMask


@torch.no_grad()
def uses_of_weights(model: nn.Module, example: Tensor) -> dict[str, int]:
    """Returns, by name, in how many places of one input each weight of a convolution or linear layer is multiplied.

    For a convolution that is the number of its output pixels, for a linear layer that of its tokens, summed over calls.

    Args:
        model: The network; its mode is left as it was.
        example: An input, ``(B, ...)``.
    """
    counts: dict[str, int] = {}

    def counter(name: str, width: int) -> Any:
        def count(layer: nn.Module, inputs: Any, output: Tensor) -> None:
            counts[name] = counts.get(name, 0) + output.numel() // (len(example) * width)

        return count

    hooks = []
    for name, layer in model.named_modules():
        if isinstance(layer, _ConvNd | nn.Linear):
            width = layer.out_channels if isinstance(layer, _ConvNd) else layer.out_features
            hooks.append(layer.register_forward_hook(counter(f"{name}.weight".lstrip("."), width)))
    training = model.training
    try:
        model.eval()(example)
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    return counts


@torch.no_grad()
def price_operations(network: nn.Module, uses: dict[str, int]) -> None:
    """Makes the penalty of every mask in ``network`` count multiplications instead of weights.

    The prices are scaled to add up to the number of masked weights, so that one lambda suits both.

    Raises:
        InputError: A masked weight belongs to no convolution or linear layer that the network called.
    """
    prices: dict[SoftMask, Tensor] = {}
    for name, layer, tensor, mask in masked_tensors(network):
        weight = layer.get_parameter(f"parametrizations.{tensor}.original")
        if weight.ndim < 2:
            continue  # a bias or an affine, which only follows its filter
        full = f"{name}.{tensor}".lstrip(".")
        if full not in uses:
            raise InputError(
                f"penalty='operations' does not know how often {full} is used, as no convolution or linear layer of "
                "its own reads it: exclude it, or use penalty='weights'"
            )
        if isinstance(mask, SoftMask):
            prices[mask] = prices.get(mask, torch.zeros((), device=weight.device)) + uses[full]
        else:
            rows = torch.full((len(weight),), float(uses[full] * weight[0].numel()), device=weight.device)
            index = torch.arange(len(rows), device=rows.device) if mask.index is None else mask.index
            empty = torch.zeros(mask.source.scores.shape, device=rows.device)
            prices[mask.source] = prices.get(mask.source, empty).index_add(0, index, rows)
    total = sum(float((price * torch.ones_like(mask.scores)).sum()) for mask, price in prices.items())
    for mask, price in prices.items():
        mask.price = price * (sum(other.total() for other in prices) / total)
