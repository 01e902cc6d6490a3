"""Removal by reconstruction: without training, what remains of each layer makes up for what is removed.

A layer computes y = W x. With second moments K = E[x x^T] of its inputs, the change of an output y_o by other weights
is (v - w_o)^T K (v - w_o), and g_o, the mean squared change of the network's output with y_o, makes the changes of all
layers comparable. Single weights and whole channels are removed where that changes the network least for their price.

Source: Hassibi and Stork, Optimal Brain Surgeon, NeurIPS 1992 (the criterion).
"""

from collections.abc import Iterable
from numbers import Real

from torch import Tensor, nn

from hgsl.common.errors import InputError
from hgsl.sparsity.masked_tensors import masked_tensors
from hgsl.sparsity.masks import Masks
from hgsl.sparsity.reconstruction.channels import remove_channels
from hgsl.sparsity.reconstruction.weights import remove_weights
from hgsl.sparsity.soft_mask import ChannelMask

__all__ = ["reconstruct"]


def reconstruct(network: nn.Module, masks: Masks, batches: Iterable[Tensor], target: float) -> None:
    """Closes weights or channels until the share ``target`` is left, and changes the weights that remain.

    The masks become those of a ticket. Convolutions without groups and linear layers are reconstructed; the weights of
    other layers stay, and so do channels that another layer reads, or that a layer reads together with others.

    Args:
        network: A masked network with open masks; its weights are changed in place.
        masks: Its masks; those of channels by ``sparsify`` with ``penalty="operations"`` or ``"time"``.
        batches: Inputs, ``(B, ...)`` each, a few thousand positions in all for a layer of a thousand inputs.
        target: Share of what the penalty counts, such as 0.6.

    Raises:
        InputError: The target is no share, masks of channels have no costs, there are no batches, or more is left when
            all is closed that can be closed in this way.
    """
    if isinstance(target, bool) or not isinstance(target, Real) or not 0 < target <= 1:
        raise InputError(f"target is {target!r:.80}: expected a share above 0 and at most 1, such as 0.6")
    if isinstance(batches, Tensor):
        raise InputError("batches is one tensor: expected several batches, such as images.split(64)")
    if masks.costs is not None:
        remove_channels(network, masks.costs, batches, target)
    elif any(isinstance(mask, ChannelMask) for _, _, _, mask in masked_tensors(network)):
        raise InputError("reconstruct needs costs: sparsify(granularity='channel', penalty='operations' or 'time')")
    else:
        remove_weights(network, masks, batches, target)
