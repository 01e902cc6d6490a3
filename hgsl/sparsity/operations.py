"""How often a forward pass uses each weight, so that a penalty can weigh time rather than size."""

import copy
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from hgsl.common.errors import InputError
from hgsl.common.modules import evaluation_mode
from hgsl.sparsity.compact import tensors_in
from hgsl.sparsity.masks import masked_weights
from hgsl.sparsity.soft_mask import SoftMask


def uses_of_weights(model: nn.Module, example: Tensor, names: Collection[str]) -> dict[str, int]:
    """Returns, by name, in how many places of one input each weight of a convolution or linear layer is multiplied.

    For a convolution that is the number of its output pixels, for a linear layer that of its tokens, summed over calls.

    Args:
        model: The network, not masked yet; the modes of its parts are left as they were.
        example: An input, ``(B, ...)``.
        names: The weights to count, each under all of its names if several layers share it.

    Raises:
        InputError: One of them is used, but by no convolution or linear layer that the network calls; or none is.
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
    try:
        with evaluation_mode(model), torch.no_grad():
            model(example)
    finally:
        for hook in hooks:
            hook.remove()

    counted = {id(model.get_parameter(name)) for name in counts}
    unseen = [name for name in names if id(model.get_parameter(name)) not in counted]
    for name in _reaching_the_output(model, example, unseen) if unseen else ():
        raise InputError(
            f"penalty='operations' does not know how often {name} is used, as no convolution or linear layer of "
            "its own reads it: exclude it, or use penalty='weights'"
        )
    uses = {name: counts.get(name, 0) for name in names}
    if not any(uses.values()):
        raise InputError("penalty='operations' has nothing to count: the network uses none of the masked weights")
    return uses


def _reaching_the_output(model: nn.Module, example: Tensor, names: Collection[str]) -> list[str]:
    """Returns which of these parameters the output depends on: those that have a gradient."""
    copied = copy.deepcopy(model).eval()
    parameters = {name: copied.get_parameter(name).requires_grad_() for name in names}
    with torch.enable_grad():
        returned = [tensor for tensor in tensors_in(copied(example)) if tensor.requires_grad]
        if not returned:
            return []
        total = torch.stack([tensor.abs().sum().float() for tensor in returned]).sum()
    gradients = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
    return [name for name, gradient in zip(names, gradients, strict=True) if gradient is not None]


@torch.no_grad()
def price_operations(network: nn.Module, uses: dict[str, int]) -> None:
    """Makes the penalty of every mask in ``network`` count multiplications instead of weights.

    The prices are scaled to add up to the number of masked weights, so that one lambda suits both.

    Args:
        network: The masked network.
        uses: What ``uses_of_weights`` counted before it was masked.
    """
    prices: dict[SoftMask, Tensor] = {}
    for name, tensor, weight, mask in masked_weights(network):
        used = uses[f"{name}.{tensor}".lstrip(".")]
        if isinstance(mask, SoftMask):
            prices[mask] = prices.get(mask, torch.zeros((), device=weight.device)) + used
        else:
            rows = torch.full((len(weight),), float(used * weight[0].numel()), device=weight.device)
            index = torch.arange(len(rows), device=rows.device) if mask.index is None else mask.index
            empty = torch.zeros(mask.source.scores.shape, device=rows.device)
            prices[mask.source] = prices.get(mask.source, empty).index_add(0, index, rows)
    total = sum(float((price * torch.ones_like(mask.scores)).sum()) for mask, price in prices.items())
    for mask, price in prices.items():
        mask.price = price * (sum(other.total() for other in prices) / total)
