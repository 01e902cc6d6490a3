"""Joint masks: all masks of a network from a few operations, instead of a few for each layer."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from hgsl.sparsity.soft_mask import SoftMask


@contextmanager
def joint_masks(masks: Sequence[SoftMask]) -> Iterator[Tensor]:
    """Lets ``masks`` return, within the context, what has been computed for all of them together.

    The values are those of each mask alone, bit for bit. The forward and backward pass of the network both lie within
    the context, and meanwhile scores, temperature and mode do not change.

    Args:
        masks: At least one, all on one device, of one dtype, temperature and mode.

    Yields:
        The sum of the masks over all masked weights, as the sum of ``SoftMask.penalty``.
    """
    sizes = [mask.scores.numel() for mask in masks]
    scores = torch.cat([mask.scores.flatten() for mask in masks])  # (S,), the scores of all masks
    gates = (scores > 0).to(scores.dtype) if masks[0].ticket else torch.sigmoid(masks[0].temperature * scores)
    initial = torch.cat([mask.initial_value.expand(size) for mask, size in zip(masks, sizes, strict=True)])
    openings = torch.sigmoid(initial)
    for mask, values in zip(masks, (gates / openings).split(sizes), strict=True):
        mask.joint = values.view_as(mask.scores)
    try:
        yield _penalty(masks, gates, openings)
    finally:
        for mask in masks:
            mask.joint = None


def _penalty(masks: Sequence[SoftMask], gates: Tensor, openings: Tensor) -> Tensor:
    dtype = torch.promote_types(gates.dtype, torch.float32)
    prices = [mask.price for mask in masks]
    if all(price is None for price in prices):
        return (gates.to(dtype) / openings.to(dtype)).sum()
    pairs = zip(masks, prices, strict=True)
    each = [openings.new_ones(()) if price is None else price.to(dtype) for _, price in pairs]
    factors = torch.cat([price.expand(mask.scores.shape).flatten() for mask, price in zip(masks, each, strict=True)])
    return (gates.to(dtype) * factors / openings.to(dtype)).sum()
