"""Compaction: a plain network without the channels that are closed."""

import copy

from torch import Tensor, nn

from hgsl.common.errors import InputError
from hgsl.common.modules import evaluation_mode
from hgsl.sparsity.channels.flow import removable
from hgsl.sparsity.channels.removal import remove_groups
from hgsl.sparsity.channels.resize import tensors_of
from hgsl.sparsity.channels.trace import example_input, trace
from hgsl.sparsity.compatibility import check_copyable, check_values
from hgsl.sparsity.masks import Masks
from hgsl.sparsity.soft_mask import SoftMask


def compact(model: nn.Module, example: Tensor | None = None) -> nn.Module:
    """Returns a plain network without the closed channels; in evaluation mode its output is the same.

    A channel is removed if it is zero whatever the input, or does not affect the output, in every layer that it is tied
    to through residual sums, depthwise convolutions, batch norms, squeeze-and-excite gates and linear heads. The zeros
    come from channel masks or are all-zero filters of any network. A channel that a batch norm shifts away from zero is
    not removed, and neither is any channel under a LayerNorm. A layer with all channels closed keeps one.

    Args:
        model: A ticket (``masks.ticket`` set), or a plain network with exact zeros. It is not changed.
        example: An input for tracing, ``(B, ...)``, B at least 2; None is a batch of images of the model's input size.

    Raises:
        InputError: The masks are soft, the network cannot be copied or traced, or it depends on its channel counts in
            a way that the trace does not show (a literal size in a reshape).
    """
    check_copyable(model)
    check_values(model)
    plain = _plain_copy(model)
    example = example_input(plain, example)
    with evaluation_mode(plain):
        graph = trace(plain, example)
        remove_groups(plain, graph, removable(graph, tensors_of(plain)), example)
    return plain


def _plain_copy(model: nn.Module) -> nn.Module:
    """Returns a copy of ``model`` with its masks multiplied in."""
    if not any(isinstance(module, SoftMask) for module in model.modules()):
        return copy.deepcopy(model)
    masks = Masks(model)
    if not masks.ticket:
        raise InputError("compact needs a ticket, and these masks are soft: set masks.ticket = True first")
    return masks.finalize()
