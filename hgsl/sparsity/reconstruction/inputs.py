"""Second moments of the inputs of layers, and how far the network's output depends on their outputs."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from hgsl.common.errors import InputError
from hgsl.common.modules import evaluation_mode

RIDGE = 1e-3  # of the mean second moment, added to its diagonal
LEAST_GAIN = 1e-6  # of the mean gain; without one, all of a layer would be closed that the output does not depend on
LIMITS = 50  # tried at most
TOLERANCE = 1e-3  # of the target, which a share may be below it


@dataclass
class LayerInputs:
    """A layer, and what batches of images tell of its inputs and outputs.

    Attributes:
        layer: A convolution or linear layer.
        moments: Once measured, E[x x^T] of the inputs, ``(C m, C m)`` float64, with m columns a channel, as of a filter
            of m pixels, and with a small multiple of the identity that makes it invertible.
        count: Positions; 0 for a layer that the network does not call.
        gains: Mean squared change of the network's output with each output of the layer, ``(O,)`` float64.
    """

    layer: nn.Module
    moments: Tensor | None = None
    count: int = 0
    gains: Tensor | None = None
    outputs: list[Tensor] = field(default_factory=list)

    @property
    def weight(self) -> Tensor:
        """The weight as stored, without its mask, ``(O, C, ...)``."""
        layer: Any = self.layer
        return layer.parametrizations.weight.original if parametrize.is_parametrized(layer, "weight") else layer.weight


def is_supported(layer: nn.Module) -> bool:
    """Whether a layer is linear, or a convolution without groups whose border is zero."""
    if isinstance(layer, nn.Conv2d):
        return layer.groups == 1 and not isinstance(layer.padding, str) and layer.padding_mode == "zeros"
    return isinstance(layer, nn.Linear)


def measure(network: nn.Module, layers: Sequence[LayerInputs], batches: Iterable[Tensor]) -> None:
    """Runs the network on the batches, and collects the second moments of inputs and the gains of outputs.

    Raises:
        InputError: There are no batches.
    """
    handles = [inputs.layer.register_forward_hook(partial(_record, inputs)) for inputs in layers]
    generator, count = torch.Generator().manual_seed(0), 0
    try:
        with evaluation_mode(network), torch.enable_grad():
            for batch in batches:
                output = network(batch)
                direction = torch.randn(output.shape, generator=generator).to(output)
                tensors = [tensor for inputs in layers for tensor in inputs.outputs]
                gradients = iter(
                    torch.autograd.grad((output * direction).sum(), tensors, allow_unused=True, materialize_grads=True)
                )
                for inputs in layers:
                    for _ in inputs.outputs:
                        gains = _outputs_first(inputs.layer, next(gradients)).double().square().sum(1)
                        inputs.gains = gains if inputs.gains is None else inputs.gains + gains
                    inputs.outputs.clear()
                count += len(batch)
    finally:
        for handle in handles:
            handle.remove()
    if not count:
        raise InputError(
            "batches has no inputs: reconstruct measures the layers on them, so give a few batches of images"
        )
    for inputs in layers:
        if inputs.moments is not None:
            diagonal = inputs.moments.div_(inputs.count).diagonal()
            diagonal.add_(RIDGE * diagonal.mean())
    measured = [inputs.gains for inputs in layers if inputs.gains is not None]
    least = LEAST_GAIN * torch.cat(measured).mean() if measured else 0.0
    for gains in measured:
        gains.clamp_(min=least).div_(count)


def close_down_to(target: float, share_at: Callable[[float], float]) -> None:
    """Calls ``share_at`` with the smallest limit that leaves at most the share ``target``, last of all limits tried.

    Args:
        target: The share.
        share_at: Limit -> share; closes what changes the network's output by less than the limit times its price.

    Raises:
        InputError: Without a limit, more is left.
    """
    limit = last = math.inf
    share = share_at(last)
    if share > target:
        raise InputError(
            f"the target share {target} cannot be reached: {share:.3f} is left when all that can be reconstructed is "
            "closed: choose a larger one, or mask more layers"
        )
    low, high = -60.0, 60.0  # natural logarithm of the limits between which the smallest one lies
    for _ in range(LIMITS):
        if share > (1 - TOLERANCE) * target:
            break
        middle = (low + high) / 2
        last = math.exp(middle)
        left = share_at(last)
        if left > target:
            low = middle
        else:
            high, limit, share = middle, last, left
    if last != limit:
        share_at(limit)


def _outputs_first(layer: nn.Module, gradient: Tensor) -> Tensor:
    """(O, positions) of a gradient ``(B, O, h, w)`` or ``(..., O)``."""
    return gradient.movedim(-1 if isinstance(layer, nn.Linear) else 1, 0).flatten(1)


@torch.no_grad()
def _columns(layer: Any, x: Tensor) -> Tensor:
    """The inputs of a layer as ``(positions, C m)``."""
    if isinstance(layer, nn.Linear):
        return x.flatten(0, -2)
    if layer.kernel_size == (1, 1):
        return x[:, :, :: layer.stride[0], :: layer.stride[1]].permute(0, 2, 3, 1).flatten(0, 2)
    patches = F.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)  # (B, C m, positions)
    return patches.mT.flatten(0, 1)


def _record(inputs: LayerInputs, layer: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor:
    columns = _columns(layer, arguments[0].detach()).double()
    moments = columns.T @ columns
    inputs.moments = moments if inputs.moments is None else inputs.moments + moments
    inputs.count += len(columns)
    if not output.requires_grad:
        output = output.detach().requires_grad_()
    inputs.outputs.append(output)
    return output.clone()  # a following in-place activation must not change the recorded output
