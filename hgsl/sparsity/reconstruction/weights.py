"""Removal of single weights: the weights after each in its row make up for it.

With K^-1 = U^T U, U upper triangular, the weight w_oj that is removed changes the output y_o least if the later ones
become w_o,l - w_oj U_jl / U_jj, and then by w_oj^2 / U_jj^2. Columns are passed once, from first to last, and a weight
is removed where that change, times g_o, is below a limit times its price; the limit is the same in all layers.

Source: Frantar and Alistarh, SparseGPT, ICML 2023 (one factor for all rows, one pass over the columns).
"""

from collections import Counter
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from hgsl.sparsity.masked_tensors import masked_tensors
from hgsl.sparsity.masks import Masks
from hgsl.sparsity.reconstruction.inputs import LayerInputs, close_down_to, is_supported, measure
from hgsl.sparsity.soft_mask import SoftMask

BLOCK = 64  # columns after which the rest of the row is updated at once


class Removal:
    """The weights of a layer before any is removed, and what decides which are.

    Args:
        inputs: The measured layer.
        mask: The mask of its weight.
    """

    def __init__(self, inputs: LayerInputs, mask: SoftMask) -> None:
        assert inputs.gains is not None
        assert inputs.moments is not None
        self.target, self.mask = inputs.weight, mask
        self.weight = inputs.weight.detach().flatten(1).double()  # (O, n)
        self.open = mask.scores.detach().abs().clamp_min(1e-3)
        self.factor = torch.linalg.cholesky(torch.linalg.inv(inputs.moments), upper=True)  # U, (n, n)
        price = torch.ones_like(self.weight) if mask.price is None else mask.price.expand(mask.scores.shape).flatten(1)
        self.price = price / inputs.gains[:, None]

    @torch.no_grad()
    def close(self, limit: float) -> None:
        """Removes the weights whose removal changes the network's output by less than ``limit`` times their price."""
        weight, closed = self.weight.clone(), torch.zeros_like(self.weight, dtype=torch.bool)
        columns = weight.shape[1]
        for first in range(0, columns, BLOCK):
            end = min(first + BLOCK, columns)
            steps = weight.new_zeros(len(weight), end - first)
            for column in range(first, end):
                step = weight[:, column] / self.factor[column, column]
                closed[:, column] = step.square() < limit * self.price[:, column]
                steps[:, column - first] = step.masked_fill(~closed[:, column], 0.0)
                weight[:, column:end] -= steps[:, column - first, None] * self.factor[column, column:end]
            weight[:, end:] -= steps @ self.factor[first:end, end:]
        self.target.copy_(weight.masked_fill(closed, 0.0).view_as(self.target))
        self.mask.scores.copy_(torch.where(closed.view_as(self.open), -1.0, self.open))


def remove_weights(network: nn.Module, masks: Masks, batches: Iterable[Tensor], target: float) -> None:
    """Closes weights until the share ``target`` of what the penalty counts is left, and refits those after each.

    See :func:`hgsl.sparsity.reconstruct`.
    """
    tensors = list(masked_tensors(network))
    uses = Counter(mask for _, _, _, mask in tensors)
    measured = [
        (LayerInputs(layer), mask)
        for _, layer, tensor, mask in tensors
        if tensor == "weight" and isinstance(mask, SoftMask) and uses[mask] == 1 and is_supported(layer)
    ]
    measure(network, [inputs for inputs, _ in measured], batches)
    removals = [Removal(inputs, mask) for inputs, mask in measured if inputs.count]
    masks.ticket = True

    def share_at(limit: float) -> float:
        for removal in removals:
            removal.close(limit)
        return float(masks.share())

    close_down_to(target, share_at)
