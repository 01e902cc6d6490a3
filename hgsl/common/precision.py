"""Precision policy: where matrix products and convolutions of float32 tensors may use TensorFloat-32.

===================  ===========================================  ================================================
``run.precision``    training of the network                      loss, embedding of an evaluation, search, metrics
===================  ===========================================  ================================================
``float32``          IEEE float32                                 IEEE float32
``tf32`` (GPU)       TensorFloat-32 products                      IEEE float32
``bfloat16``         bfloat16 products, by autocast               the embedding in bfloat16, the rest IEEE float32
``float16`` (GPU)    float16 products, by autocast, with a        the embedding in float16, the rest IEEE float32
                     gradient scaler
===================  ===========================================  ================================================

PyTorch lets cuDNN use TensorFloat-32 by default, so that float32 on a GPU would keep 10 bits of a convolution's
inputs. Parameters, optimizer states and running means are float32 with every choice.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from hgsl.common.autograd import is_traced

# Settings of torch.backends for float32 operations: (backend, operation), read and written without an accelerator.
SWITCHES = (("cuda", "matmul"), ("cudnn", "conv"), ("cudnn", "rnn"), ("mkldnn", "matmul"))


@contextmanager
def float32_products(tf32: bool = False) -> Iterator[None]:
    """Computes float32 products and convolutions in full float32 within the context, or in TensorFloat-32.

    Whatever was set before, through either of PyTorch's two interfaces, is set again on exit.
    """
    before = _read()
    try:
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = tf32
        if not tf32:
            _refuse_inherited_tf32()
        yield
    finally:
        _write(before)


@contextmanager
def ieee_products(device: torch.device) -> Iterator[None]:
    """Computes float32 matrix products on ``device`` in full float32 within the context.

    It costs a few microseconds, so that it can be entered in every forward and backward.
    """
    switch = _switch("cuda" if device.type == "cuda" else "mkldnn", "matmul")
    before = None if torch.compiler.is_compiling() else switch.fp32_precision
    if before in (None, "none", "ieee"):
        yield
        return
    switch.fp32_precision = "ieee"
    try:
        yield
    finally:
        switch.fp32_precision = before


def ieee_product(a: Tensor, b: Tensor) -> Tensor:
    """Returns ``a @ b.T`` of ``a`` ``(n, D)`` and ``b`` ``(m, D)`` in full float32, and so are its gradients.

    The gradients of a compiled or transformed call follow the settings of PyTorch.
    """
    if is_traced():
        with ieee_products(a.device):
            return a @ b.T
    return _IeeeProduct.apply(a, b)


class _IeeeProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        with ieee_products(a.device):
            return a @ b.T

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        a, b = ctx.saved_tensors
        grad_a = ieee_product(gradient, b.T) if ctx.needs_input_grad[0] else None
        grad_b = ieee_product(gradient.T, a.T) if ctx.needs_input_grad[1] else None
        return grad_a, grad_b


def _refuse_inherited_tf32() -> None:
    """Sets IEEE arithmetic where a switch without a value of its own would inherit another one."""
    for backend, operation in SWITCHES:
        if _switch(backend, operation).fp32_precision not in ("none", "ieee"):
            _switch(backend, operation).fp32_precision = "ieee"


def _read() -> tuple[str | None, bool | None, list[str]]:
    """Returns the settings of the older interface, None where it cannot express them, and those of the newer one."""
    try:
        matmul: str | None = torch.get_float32_matmul_precision()
    except RuntimeError:
        matmul = None
    try:
        cudnn: bool | None = bool(torch.backends.cudnn.allow_tf32)
    except RuntimeError:
        cudnn = None
    return matmul, cudnn, [_switch(*names).fp32_precision for names in SWITCHES]


def _write(settings: tuple[str | None, bool | None, list[str]]) -> None:
    matmul, cudnn, values = settings
    # The older interface first: it also sets the newer one, whose values may be finer.
    if matmul is not None:
        torch.set_float32_matmul_precision(matmul)
    if cudnn is not None:
        torch.backends.cudnn.allow_tf32 = cudnn
    for (backend, operation), value in zip(SWITCHES, values, strict=True):
        if _switch(backend, operation).fp32_precision != value:
            _switch(backend, operation).fp32_precision = value


def _switch(backend: str, operation: str) -> Any:
    return getattr(getattr(torch.backends, backend), operation)
