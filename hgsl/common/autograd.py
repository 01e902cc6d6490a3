"""Custom gradients: a value with a known gradient, and a guard against wrong second derivatives."""

from typing import Any

import torch
from torch import Tensor

from hgsl.common.errors import InputError


def builds_graph() -> bool:
    """Whether the running backward pass is recorded for a second derivative (``create_graph=True``).

    False in a compiled backward pass: PyTorch itself refuses second derivatives of compiled functions.
    """
    return torch.is_grad_enabled() and not torch.compiler.is_compiling()


def is_transformed() -> bool:
    """Whether the running call is differentiated or vectorized by ``torch.func`` (``grad``, ``vmap``, ``jacrev``, ...).

    Its transforms refuse the autograd functions of this package, in whose place plain operations are then computed.
    False in a compiled call.
    """
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()


def is_traced() -> bool:
    """Whether the running call is compiled, or transformed by ``torch.func``: no value of a tensor can then be read."""
    return torch.compiler.is_compiling() or is_transformed()


def refuse_second_derivative(function: str, way_out: str) -> None:
    """Guards the ``backward`` of a ``torch.autograd.Function`` that is not twice differentiable; call it there first.

    ``once_differentiable`` is not enough: it returns constants, and ``torch.autograd.grad(..., inputs=x)`` silently
    omits their part of the second derivative if ``x`` is also reached by another path.

    Raises:
        InputError: The backward pass is called with ``create_graph=True``.
    """
    if builds_graph():
        raise InputError(f"{function} has no second derivative (create_graph=True): {way_out}")


def with_gradient(value: Tensor, inputs: Tensor, gradient: Tensor) -> Tensor:
    """Returns the scalar ``value``, a constant, as a function of ``inputs`` with the known ``gradient``.

    Its second derivative is refused.
    """
    return _WithGradient.apply(value, inputs, gradient)


class _WithGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, inputs: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad_value: Tensor) -> tuple[None, Tensor, None]:
        refuse_second_derivative("a loss over several processes", "compute it in one process")
        (gradient,) = ctx.saved_tensors
        return None, grad_value * gradient, None
