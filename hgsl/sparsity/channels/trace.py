"""Export of a module to its channel graph.

The exported graph has no side effects and no in-place operators, so it shows all dependencies between tensors. Where an
operator has no rule, or is used in a form that its rule does not cover, the channels of its inputs are pinned and those
of its output are unknown.
"""

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr

import torch
from torch import Tensor, nn

from hgsl.common.errors import InputError, first_line
from hgsl.sparsity.channels.graph import ChannelGraph
from hgsl.sparsity.channels.rules import RULES


def trace(module: nn.Module, example: Tensor) -> ChannelGraph:
    """Returns the channel graph of ``module``, which is in evaluation mode, for inputs like ``example``.

    Raises:
        InputError: The module cannot be exported with this input.
    """
    try:
        with _silent_torch():
            exported = torch.export.export(module, (example,)).run_decompositions({})
    except Exception as error:
        raise InputError(
            f"{type(module).__name__} cannot be traced with an input of shape {tuple(example.shape)} "
            f"({first_line(error)}): pass an example input that it takes, or mask single weights "
            "(granularity='weight')"
        ) from error
    signature = exported.graph_signature
    graph = ChannelGraph({**signature.inputs_to_parameters, **signature.inputs_to_buffers})
    for node in exported.graph.nodes:
        name = str(node.target).removeprefix("aten.").split(".")[0]
        if node.op == "call_function" and not name.startswith(("_assert", "sym_")):
            rule = RULES.get(name)
            if rule is None or not rule(graph, node):
                graph.pin(node.all_input_nodes)
        elif node.op == "output":
            graph.pin(node.all_input_nodes)
    graph.resolve()
    return graph


def example_input(module: nn.Module, example: Tensor | None = None) -> Tensor:
    """Returns ``example``, or a batch of 2 images of the model's input size (224 px if it has none).

    The result is on the device of the parameters and, unless it is an integer tensor, of their dtype.

    Raises:
        InputError: ``example`` is not a tensor, or the module has no floating-point parameter.
    """
    if example is not None and not isinstance(example, Tensor):
        raise InputError(
            f"example is a {type(example).__name__}, expected the network's one input tensor: convert an array with "
            "torch.as_tensor, and wrap a network of several inputs in a module that takes one tensor"
        )
    parameter = next((parameter for parameter in module.parameters() if parameter.is_floating_point()), None)
    if parameter is None:
        raise InputError(f"{type(module).__name__} has no floating-point parameter, so no channel can be removed")
    if example is None:
        config = getattr(module, "data_config", None) or getattr(module, "pretrained_cfg", None) or {}
        channels, *_, side = config.get("input_size", (3, 224, 224))
        side = config.get("image_size", side)
        example = torch.rand(2, channels, side, side, generator=torch.Generator().manual_seed(0))
    return example.to(parameter.device, parameter.dtype if example.is_floating_point() else None)


@contextmanager
def _silent_torch() -> Iterator[None]:
    """Suppresses the logs, prints and warnings of torch during an export, since an error is raised as one line."""
    logger = logging.getLogger("torch")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
