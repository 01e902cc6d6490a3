"""From a module to the graph of its channels.

The module is exported to a graph without side effects or in-place operators, so what it computes is all there is to
know. Where an operator has no rule, or not in this form, the channels that it reads are pinned and its output is
followed no further.
"""

import torch
from torch import Tensor, nn

from hgsl.common.errors import InputError
from hgsl.sparsity.channels.graph import ChannelGraph
from hgsl.sparsity.channels.rules import RULES


def trace(module: nn.Module, example: Tensor) -> ChannelGraph:
    """Returns the channel graph of ``module``, in evaluation mode, for inputs like ``example``.

    Raises:
        InputError: The module cannot be exported with this input.
    """
    try:
        exported = torch.export.export(module, (example,)).run_decompositions({})
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"{type(module).__name__} cannot be traced with an input of shape {tuple(example.shape)} ({reason}): "
            "pass an example input that it takes, or mask single weights (granularity='weight')"
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
    """Returns ``example``, or a batch of 2 images of the model's image size (224 px where it names none).

    It comes on the device and, unless it holds whole numbers, in the type of the model's parameters.

    Raises:
        InputError: ``example`` is not one tensor.
    """
    if example is not None and not isinstance(example, Tensor):
        raise InputError(
            f"example is a {type(example).__name__}, and must be the network's one input tensor: give a network of "
            "several inputs a wrapper that takes one"
        )
    parameter = next(module.parameters())
    if example is None:
        config = getattr(module, "data_config", None) or getattr(module, "pretrained_cfg", None) or {}
        channels, *_, side = config.get("input_size", (3, 224, 224))
        side = config.get("image_size", side)
        example = torch.rand(2, channels, side, side)
    return example.to(parameter.device, parameter.dtype if example.is_floating_point() else None)
