"""The regularizer that turns class centers toward right angles."""

from typing import Any

import torch
from torch import Tensor

from hgsl.common.autograd import builds_graph
from hgsl.losses.checks import check_integer
from hgsl.losses.scoring.similarity import unit_of_any_norm

EXACT_UP_TO, SAMPLE = 256, 128  # every pair of up to 256 classes; of more, the pairs of 128 sampled ones
BLOCK = 2**20  # dot products held at a time
FEW = 32  # so many draws of one class out of dozens do not all coincide


def decorrelation(centers: Tensor, sample: int | None = None) -> Tensor:
    """Returns the mean of ``|w_j . w_l|`` over the pairs ``j != l`` of unit centers, or an unbiased estimate of it.

    Args:
        centers: ``(C, D)``, of any norm.
        sample: rows to draw, with torch's global generator; their pairs give the estimate. None, or C and more: every
            pair.

    Raises:
        InputError: ``sample`` is no integer of at least 2.
    """
    rows = sampled_rows(len(centers), sample, centers.device)
    with torch.autocast(centers.device.type, enabled=False):
        w = unit_of_any_norm(centers.to(torch.promote_types(centers.dtype, torch.float32)))
        return mean_abs_dots(w[rows], rows)


def sampled_rows(num_classes: int, sample: int | None, device: torch.device) -> Tensor:
    """Returns every row number, or ``sample`` of them drawn with replacement, at a cost that does not grow with C.

    At least two rows differ. No class is preferred in this, so every pair of classes has the same chance.

    Raises:
        InputError: ``sample`` is no integer of at least 2.
    """
    check_integer("decorrelation_sample", sample, 2, "None for every pair")
    if sample is None or sample >= num_classes:
        return torch.arange(num_classes, device=device)
    rows = torch.randint(num_classes, (sample,), device=device)
    if sample < FEW:
        step = torch.randint(1, num_classes, (), device=device)
        rows[1] = (rows[0] + step) % num_classes
    return rows


def mean_abs_dots(vectors: Tensor, rows: Tensor) -> Tensor:
    """Returns the mean of ``|a . b|`` over the pairs of ``vectors`` ``(m, D)`` that come from different ``rows``."""
    return _SumAbsDots.apply(vectors, rows) / count_pairs(rows)


def count_pairs(rows: Tensor) -> Tensor:
    """Returns how many ordered pairs of ``rows`` differ (at least 1, to divide by).

    Given which rows coincide, each pair of different rows is any pair of different classes with equal chance, so the
    mean over them is unbiased though rows may repeat.
    """
    return (rows[:, None] != rows).sum().clamp_min(1)


@torch.no_grad()
def sum_abs_dots(local: Tensor, every: Tensor, local_rows: Tensor, every_rows: Tensor) -> tuple[Tensor, Tensor]:
    """Sums ``|a . b|`` over ``a`` in ``local`` ``(n, D)`` and ``b`` in ``every`` ``(m, D)`` of another row.

    Returns:
        The sum; its gradient ``(n, D)`` by ``local``, which is part of ``every``: a pair is met from both its ends, and
        counts twice. One block of dot products is held at a time.
    """
    total, gradients = local.new_zeros(()), [local[:0]]
    step = max(1, BLOCK // max(1, len(every)))
    for a, row in zip(local.split(step), local_rows.split(step), strict=True):
        dots = (a @ every.T).masked_fill_(row[:, None] == every_rows, 0)
        total = total + dots.abs().sum()
        gradients.append(2 * dots.sign_() @ every)
    return total, torch.cat(gradients)


class _SumAbsDots(torch.autograd.Function):
    """Sum of ``|a . b|`` over the ordered pairs of ``vectors`` of different ``rows``, computed with its gradient.

    The gradient is linear in the vectors as long as no dot product changes its sign, which gives the second derivative.
    """

    @staticmethod
    def forward(ctx: Any, vectors: Tensor, rows: Tensor) -> Tensor:
        total, gradient = sum_abs_dots(vectors, vectors, rows, rows)
        ctx.save_for_backward(vectors, rows, gradient)
        return total

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor) -> tuple[Tensor, None]:
        vectors, rows, gradient = ctx.saved_tensors
        if builds_graph():
            with torch.no_grad():
                signs = (vectors @ vectors.T).masked_fill_(rows[:, None] == rows, 0).sign_()
            gradient = 2 * signs @ vectors
        return grad_total * gradient, None
