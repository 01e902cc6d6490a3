"""Multiplications of each layer and of each weight, and a penalty of weight masks that counts them."""

import copy
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from hgsl.common.errors import InputError, first_line
from hgsl.common.modules import evaluation_mode
from hgsl.sparsity.channels.equivalence import tensors_in
from hgsl.sparsity.masked_tensors import masked_weights
from hgsl.sparsity.soft_mask import SoftMask


def uses_of_weights(model: nn.Module, example: Tensor, names: Collection[str]) -> dict[str, int]:
    """Returns how often one input multiplies each weight of a convolution or linear layer, by name.

    That is the number of output pixels of a convolution, or of tokens of a linear layer, summed over its calls.

    Args:
        model: The network, not masked yet; the training mode of each module is restored.
        example: An input, ``(B, ...)``.
        names: The weights to count; one that several layers share, under each of its names.

    Raises:
        InputError: A weight affects the output but belongs to no convolution or linear layer that is called, or none
            of the weights is used.
    """
    counts = count_uses(model, example)
    counted = {id(model.get_parameter(name)) for name in counts}
    uncounted = [name for name in names if id(model.get_parameter(name)) not in counted]
    for name in _with_gradient(model, example, uncounted) if uncounted else ():
        raise InputError(
            f"penalty='operations' cannot count the uses of {name}, since it is not the weight of a convolution or "
            "linear layer that is called: exclude it, or use penalty='weights'"
        )
    uses = {name: counts.get(name, 0) for name in names}
    if not any(uses.values()):
        raise InputError("penalty='operations' counts nothing: the network uses none of the masked weights")
    return uses


@torch.no_grad()
def penalize_operations(network: nn.Module, uses: dict[str, int]) -> None:
    """Makes the penalty of every weight mask in ``network`` count multiplications instead of weights.

    The counts are scaled to add up to the number of masked weights, so that one lambda suits both penalties.

    Args:
        network: The masked network.
        uses: The result of ``uses_of_weights`` for the network before it was masked.
    """
    operations: dict[SoftMask, Tensor] = {}  # multiplications per score
    for name, tensor, weight, mask in masked_weights(network):
        assert isinstance(mask, SoftMask)
        zero = torch.zeros((), device=weight.device)
        operations[mask] = operations.get(mask, zero) + uses[f"{name}.{tensor}".lstrip(".")]
    total = sum(float((per_score * torch.ones_like(mask.scores)).sum()) for mask, per_score in operations.items())
    weight_count = sum(mask.count_masked() for mask in operations)
    for mask, per_score in operations.items():
        mask.penalty_weight = per_score * (weight_count / total)


def operations_of_layers(model: nn.Module, example: Tensor) -> dict[str, float]:
    """Returns the multiplications that one input takes in each convolution and linear layer, by weight name."""
    return {name: float(uses * model.get_parameter(name).numel()) for name, uses in count_uses(model, example).items()}


def count_uses(model: nn.Module, example: Tensor) -> dict[str, int]:
    """Returns how often one input multiplies the weight of each convolution and linear layer that is called."""
    counts: dict[str, int] = {}

    def counter(name: str) -> Any:
        def count(layer: nn.Module, inputs: Any, output: Tensor) -> None:
            counts[name] = counts.get(name, 0) + _positions(layer, inputs[0], output) // len(example)

        return count

    hooks = []
    for name, layer in model.named_modules():
        if isinstance(layer, _ConvNd | nn.Linear):
            hooks.append(layer.register_forward_hook(counter(f"{name}.weight".lstrip("."))))
    try:
        with evaluation_mode(model), torch.no_grad():
            model(example)
    except Exception as error:  # whatever a forward raises
        raise InputError(
            f"{type(model).__name__} fails for an input of shape {tuple(example.shape)} ({first_line(error)}): "
            "pass an example input that it takes, or use penalty='weights'"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    return counts


def _positions(layer: nn.Module, x: Tensor, output: Tensor) -> int:
    """Returns at how many positions a call multiplies the weight: output pixels, or the input's if transposed."""
    if isinstance(layer, _ConvNd):
        return x.numel() // layer.in_channels if layer.transposed else output.numel() // layer.out_channels
    return output.numel() // output.shape[-1]


def _with_gradient(model: nn.Module, example: Tensor, names: Collection[str]) -> list[str]:
    """Returns which of these parameters the output depends on: those that have a gradient."""
    network = copy.deepcopy(model).eval()
    parameters = {name: network.get_parameter(name).requires_grad_() for name in names}
    with torch.enable_grad():
        outputs = [tensor for tensor in tensors_in(network(example)) if tensor.requires_grad]
        if not outputs:
            return []
        total = torch.stack([tensor.abs().sum().float() for tensor in outputs]).sum()
    gradients = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
    return [name for name, gradient in zip(names, gradients, strict=True) if gradient is not None]
