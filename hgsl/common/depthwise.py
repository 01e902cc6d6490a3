"""Depthwise convolutions of a network in bfloat16 on a CPU: their backward pass is faster in float32.

The matrix units of a processor multiply bfloat16 several times as fast as float32. A convolution in which each channel
of the output reads one channel of the input is no matrix product, and its backward pass was measured to take several
times as long in bfloat16 as in float32. All other operations of such a network gain from bfloat16.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

Pair = int | tuple[int, int]


class Float32DepthwiseBackward(TorchFunctionMode):
    """Computes depthwise convolutions called within the context in bfloat16, and their backward pass in float32.

    What is saved for the backward pass, and the dtypes of output and gradients, are those of bfloat16 autocast.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        function = _conv2d if func is torch.conv2d else func
        return function(*args, **(kwargs or {}))


def _conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Pair = 1,
    padding: Pair | str = 0,
    dilation: Pair = 1,
    groups: int = 1,
) -> Tensor:
    is_depthwise = groups > 1 and weight.shape[1] == 1 and input.ndim == 4
    if not is_depthwise or isinstance(padding, str) or not torch.is_grad_enabled():
        return torch.conv2d(input, weight, bias, stride, padding, dilation, groups)
    settings = (*map(_pair, (stride, padding, dilation)), False, [0, 0], groups)
    output: Tensor = _Depthwise.apply(input, weight, bias, settings)
    return output


def _pair(value: Pair) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value)


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, settings: tuple[Any, ...]) -> Tensor:
        rounded = input.bfloat16(), weight.bfloat16()
        ctx.save_for_backward(*rounded)
        ctx.settings, ctx.dtypes = settings, [None if t is None else t.dtype for t in (input, weight, bias)]
        return torch.convolution(*rounded, None if bias is None else bias.bfloat16(), *settings)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        tensors = [tensor.float() for tensor in (gradient, *ctx.saved_tensors)]
        gradients = torch.ops.aten.convolution_backward(
            *tensors, [gradient.shape[1]], *ctx.settings, list(ctx.needs_input_grad[:3])
        )
        pairs = zip(gradients, ctx.dtypes, strict=True)
        return *(value if value is None else value.to(dtype) for value, dtype in pairs), None
