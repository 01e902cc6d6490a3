"""The regularizer that turns class centers toward right angles."""

import torch
from torch import Tensor

from hgsl.common.errors import InputError
from hgsl.losses.similarity import unit

EXACT_UP_TO, SAMPLE = 256, 128  # every pair of up to 256 classes; of more, the pairs of 128 drawn ones
BLOCK = 2**20  # dot products held at a time


def decorrelation(centers: Tensor, sample: int | None = None) -> Tensor:
    """Returns the mean of ``|w_j . w_l|`` over the pairs ``j != l`` of unit centers, or an unbiased estimate of it.

    Args:
        centers: ``(C, D)``, of any norm.
        sample: rows to draw, with torch's global generator; their pairs give the estimate. None, or C and more: every
            pair.

    Raises:
        InputError: ``sample`` is below 2.
    """
    rows = draw_rows(len(centers), sample, centers.device)
    with torch.autocast(centers.device.type, enabled=False):
        w = unit(centers.to(torch.promote_types(centers.dtype, torch.float32)))
        return mean_abs_dots(w[rows], rows)


def draw_rows(num_classes: int, sample: int | None, device: torch.device) -> Tensor:
    """Returns every row number, or ``sample`` of them drawn with replacement, which costs nothing however many.

    Raises:
        InputError: ``sample`` is below 2.
    """
    if sample is None or sample >= num_classes:
        return torch.arange(num_classes, device=device)
    if sample < 2:
        raise InputError(f"decorrelation needs at least 2 sampled rows, found {sample}")
    return torch.randint(num_classes, (sample,), device=device)


def mean_abs_dots(vectors: Tensor, rows: Tensor) -> Tensor:
    """Returns the mean of ``|a . b|`` over the pairs of ``vectors`` ``(m, D)`` that come from different ``rows``."""
    return sum_abs_dots(vectors, vectors.detach(), rows, rows) / pairs(rows)


def pairs(rows: Tensor) -> Tensor:
    """Returns how many ordered pairs of ``rows`` differ (at least 1, to divide by).

    Given which draws coincide, each pair of different draws is any pair of different classes with equal chance, so the
    mean over them is unbiased though rows may repeat.
    """
    return (rows[:, None] != rows).sum().clamp_min(1)


def sum_abs_dots(own: Tensor, every: Tensor, own_rows: Tensor, every_rows: Tensor) -> Tensor:
    """Returns the sum of ``|a . b|`` over ``a`` in ``own`` ``(n, D)`` and ``b`` in ``every`` ``(m, D)`` of another row.

    ``every`` holds the vectors of ``own`` (and of other processes) as constants. A pair is met from both its ends, so
    the gradient of ``own`` counts each twice. One block of products is held at a time.
    """
    total, slopes = own.new_zeros(()), [own.detach()[:0]]
    with torch.no_grad():
        step = max(1, BLOCK // max(1, len(every)))
        for a, row in zip(own.split(step), own_rows.split(step), strict=True):
            dots = (a @ every.T).masked_fill_(row[:, None] == every_rows, 0)
            total = total + dots.abs().sum()
            slopes.append(2 * dots.sign_() @ every)
    return with_slopes(total, own, torch.cat(slopes))


def with_slopes(value: Tensor, inputs: Tensor, slopes: Tensor) -> Tensor:
    """Returns ``value`` with ``slopes`` as its gradient by ``inputs``; value and slopes are constants already known."""
    linear = (slopes * inputs).sum()
    return value + (linear - linear.detach())
