"""Comparison of a network's output before and after the removal of channels."""

import copy

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from hgsl.common.errors import InputError, first_line

TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-4}


def tensors_in(output: object) -> list[Tensor]:
    """Returns the tensors in the output of a network: one, or a tuple or dict of them."""
    return [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]


def reference_output(model: nn.Module, example: Tensor) -> tuple[torch.dtype, list[Tensor]]:
    """Computes the output in float64, where a difference is an error and not rounding, or else in float32.

    Raises:
        InputError: The network runs in neither, or its output is random.
    """
    name = type(model).__name__
    try:
        dtype, output = torch.float64, _output(model, example, torch.float64)
    except RuntimeError:
        try:
            dtype, output = torch.float32, _output(model, example, torch.float32)
        except RuntimeError as error:
            raise InputError(
                f"{name} runs neither in float64 nor in float32 on the CPU ({first_line(error)}), "
                "which a comparison with the network without its closed channels needs"
            ) from error
    for first, second in zip(output, _output(model, example, dtype), strict=True):
        if _relative_difference(first, second) > TOLERANCES[dtype]:
            raise InputError(
                f"the output of {name} differs between two calls in evaluation mode, so it cannot be compared with the "
                "network without its closed channels: make its forward deterministic there"
            )
    return dtype, output


def check_output(small: nn.Module, example: Tensor, dtype: torch.dtype, expected: list[Tensor]) -> None:
    """Compares the output of the smaller network with that of the whole one.

    Args:
        small: The network without its closed channels.
        example: The input.
        dtype: The dtype of ``expected``.
        expected: The output tensors of the whole network.

    Raises:
        InputError: The smaller network fails, or its output differs.
    """
    name = type(small).__name__
    way_out = "leave the layers whose channel count its forward depends on unmasked (sparsify's exclude)"
    try:
        output = _output(small, example, dtype)
        differences = [_relative_difference(a, b) for a, b in zip(output, expected, strict=True)]
    except Exception as error:  # whatever a forward raises: an assertion about its channels, an index
        raise InputError(f"{name} fails without its closed channels ({first_line(error)}): {way_out}") from error
    if not all(bool(value.isfinite().all()) for value in expected):
        raise InputError(f"the output of {name} is not finite for this example: pass another, or repair its weights")
    for difference in differences:
        if not difference <= TOLERANCES[dtype]:  # also for NaN
            raise InputError(f"the output of {name} is off by {difference:.2g} without its closed channels: {way_out}")


@torch.no_grad()
def _output(model: nn.Module, example: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """Computes all tensors that ``model`` returns, in ``dtype``, on a copy on the CPU."""

    def cast(tensor: Tensor) -> Tensor:
        return tensor.cpu().to(dtype) if tensor.is_floating_point() else tensor.cpu()

    network: nn.Module = copy.deepcopy(model)._apply(cast)
    return tensors_in(network(cast(example)))


def _relative_difference(value: Tensor, expected: Tensor) -> float:
    """Returns the largest difference, relative to the largest expected entry if that is above one."""
    if value.shape != expected.shape:
        raise ValueError(f"an output of shape {tuple(expected.shape)} becomes {tuple(value.shape)}")
    if expected.numel() == 0:
        return 0.0
    difference = (value.double() - expected.double()).abs().max() / expected.double().abs().max().clamp(min=1.0)
    return float(difference)
