"""The backward pass of depthwise convolutions in float32."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from timm.layers import create_conv2d
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from hgsl.common.depthwise import Float32DepthwiseBackward
from hgsl.engine.runtime import Runtime

LAYERS: dict[str, Callable[[], nn.Module]] = {
    "bias": lambda: nn.Conv2d(8, 8, 3, padding=1, groups=8),
    "stride": lambda: nn.Conv2d(8, 8, 5, stride=2, padding=2, groups=8, bias=False),
    "dilation": lambda: nn.Conv2d(8, 8, 3, dilation=2, groups=8),
    "two outputs a channel": lambda: nn.Conv2d(8, 16, 3, groups=8),
    "timm's same padding": lambda: create_conv2d(8, 8, 3, stride=2, padding="same", depthwise=True),
}


class BackwardDtypes(TorchDispatchMode):
    """Records the dtypes of gradients that convolutions receive."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: list[torch.dtype] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.convolution_backward.default:
            self.dtypes.append(args[0].dtype)
        return func(*args, **(kwargs or {}))


def gradients(layer: nn.Module, images: Tensor, weights: Tensor) -> tuple[Tensor, list[Tensor], list[torch.dtype]]:
    """Returns the output, the gradients of images and parameters, and the dtypes of gradients in the backward pass."""
    images = images.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        output = layer(images)
    with BackwardDtypes() as recorded:
        values = torch.autograd.grad((output.float() * weights).sum(), [images, *layer.parameters()])
    return output.detach(), list(values), recorded.dtypes


@pytest.mark.parametrize("name", LAYERS)
def test_forward_is_that_of_bfloat16_and_backward_that_of_float32(name: str) -> None:
    torch.manual_seed(0)
    layer, images = LAYERS[name](), torch.randn(3, 8, 11, 11)
    weights = torch.randn_like(layer(images)).bfloat16().float()
    expected, rough, dtypes = gradients(layer, images, weights)
    assert dtypes == [torch.bfloat16]
    with Float32DepthwiseBackward():
        output, values, dtypes = gradients(layer, images, weights)
    assert dtypes == [torch.float32]
    assert output.dtype == torch.bfloat16
    assert torch.equal(output, expected)
    assert [value.dtype for value in values] == [value.dtype for value in rough] == [torch.float32] * len(rough)
    with torch.no_grad():  # the exact gradients at the rounded image and weight
        for parameter in layer.parameters():
            parameter.copy_(parameter.bfloat16())
    exact = layer.double()
    rounded = images.bfloat16().double().requires_grad_()
    wanted = torch.autograd.grad((exact(rounded) * weights).sum(), [rounded, *exact.parameters()])
    for value, target in zip(values[1:], wanted[1:], strict=True):
        torch.testing.assert_close(value.double(), target, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(values[0].double(), wanted[0], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("layer", [nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3, groups=4), nn.Conv2d(1, 4, 3)])
def test_other_convolutions_are_left_alone(layer: nn.Conv2d) -> None:
    with Float32DepthwiseBackward():
        _, _, dtypes = gradients(
            layer, torch.randn(2, next(layer.parameters()).shape[1] * layer.groups, 9, 9), torch.ones(1)
        )
    assert dtypes == [torch.bfloat16]


def test_recomputed_activations_have_the_same_gradient() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 1), LAYERS["bias"](), nn.GELU(), nn.Conv2d(8, 4, 1))
    images, weights = torch.randn(2, 3, 9, 9), torch.randn(2, 4, 9, 9)
    with Float32DepthwiseBackward():
        _, values, _ = gradients(network, images, weights)
    recomputed = nn.Module()
    recomputed.network = network
    recomputed.forward = lambda x: checkpoint(network, x, use_reentrant=False)
    with Float32DepthwiseBackward():
        _, again, _ = gradients(recomputed, images, weights)
    assert all(map(torch.equal, values, again))


@pytest.mark.parametrize(("dtype", "expected"), [(torch.bfloat16, [torch.float32]), (torch.float32, [torch.float32])])
def test_the_autocast_of_a_run_includes_it(dtype: torch.dtype, expected: list[torch.dtype]) -> None:
    layer, images = LAYERS["bias"](), torch.randn(2, 8, 9, 9)
    with Runtime(torch.device("cpu"), dtype, 0).autocast():
        output = layer(images)
    assert output.dtype == dtype
    with BackwardDtypes() as recorded:
        output.float().sum().backward()
    assert recorded.dtypes == expected
