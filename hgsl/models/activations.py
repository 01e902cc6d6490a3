"""Activations that work in place: the faster way to compute an embedding, and the slower one in training."""

from typing import Any

from torch import nn

# Their derivatives need the input, of which autograd keeps a copy where it is overwritten. (That of a ReLU does not.)
NEED_INPUT = (nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.SiLU, nn.Mish)  # ReLU6 is a Hardtanh


def activations_in_place(network: nn.Module) -> list[Any]:
    """Returns the modules that overwrite an input which their derivative needs."""
    return [module for module in network.modules() if isinstance(module, NEED_INPUT) and module.inplace]
