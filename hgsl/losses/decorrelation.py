"""Decorrelation: a regularizer that drives class centers toward orthogonality."""

from typing import Any

import torch
from torch import Tensor

from hgsl.common.autograd import builds_graph, is_transformed
from hgsl.common.precision import ieee_product, ieee_products
from hgsl.losses.checks import check_integer
from hgsl.losses.scoring.similarity import unit_of_any_norm

EXACT_UP_TO, SAMPLE = 256, 128  # every pair of up to 256 classes; of more, the pairs of 128 sampled ones
BLOCK = 2**20  # dot products held at a time
DISTINCT_FROM = 32  # from this many draws on, the probability that all of them coincide is below 1e-40


def decorrelation(centers: Tensor, sample: int | None = None) -> Tensor:
    """Returns the mean of ``|w_j . w_l|`` over the pairs ``j != l`` of unit centers, or an unbiased estimate of it.

    Args:
        centers: ``(C, D)``, of any norm.
        sample: number of classes sampled, by torch's global generator, for the estimate. None, or C or more, uses
            every pair.

    Raises:
        InputError: ``sample`` is not an integer of at least 2.
    """
    rows = sampled_rows(len(centers), sample, centers.device)
    with torch.autocast(centers.device.type, enabled=False):
        w = unit_of_any_norm(centers.to(torch.promote_types(centers.dtype, torch.float32)))
        return mean_abs_dots(w[rows], rows)


def sampled_rows(num_classes: int, sample: int | None, device: torch.device) -> Tensor:
    """Returns all row indices, or ``sample`` of them drawn with replacement, at a cost independent of C.

    At least two rows differ. Every pair of classes has the same probability.

    Raises:
        InputError: ``sample`` is not an integer of at least 2.
    """
    check_integer("decorrelation_sample", sample, 2, "None for every pair")
    if sample is None or sample >= num_classes:
        return torch.arange(num_classes, device=device)
    rows = torch.randint(num_classes, (sample,), device=device)
    if sample < DISTINCT_FROM:
        step = torch.randint(1, num_classes, (), device=device)
        rows[1] = (rows[0] + step) % num_classes
    return rows


def mean_abs_dots(vectors: Tensor, rows: Tensor) -> Tensor:
    """Returns the mean of ``|a . b|`` over the pairs of ``vectors`` ``(m, D)`` that come from different ``rows``."""
    if is_transformed():
        dots = ieee_product(vectors, vectors).masked_fill(rows[:, None] == rows, 0)
        return dots.abs().sum() / count_pairs(rows)
    return _SumAbsDots.apply(vectors, rows) / count_pairs(rows)


def count_pairs(rows: Tensor) -> Tensor:
    """Returns the number of ordered pairs of different ``rows``, or 1 if there are none, as a divisor.

    Each pair of different rows is equally likely to be any pair of different classes, so the mean over these pairs is
    unbiased although rows may repeat.
    """
    return (rows[:, None] != rows).sum().clamp_min(1)


@torch.no_grad()
def sum_abs_dots(part: Tensor, vectors: Tensor, part_rows: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Sums ``|a . b|`` over ``a`` in ``part`` ``(n, D)`` and ``b`` in ``vectors`` ``(m, D)`` of different rows.

    One block of dot products is held at a time.

    Args:
        part: those of the ``vectors`` that one process holds, or all of them.
        vectors: of all processes.
        part_rows: ``(n,)``, the class of each vector in ``part``.
        rows: ``(m,)``, the class of each of the ``vectors``.

    Returns:
        The sum; the gradient ``(n, D)``, with respect to ``part``, of the total over all processes: each pair counts
        twice, once from each side.
    """
    total, gradients = part.new_zeros(()), [part[:0]]
    step = max(1, BLOCK // max(1, len(vectors)))
    with ieee_products(part.device):
        for block, block_rows in zip(part.split(step), part_rows.split(step), strict=True):
            dots = (block @ vectors.T).masked_fill_(block_rows[:, None] == rows, 0)
            total = total + dots.abs().sum()
            gradients.append(2 * dots.sign_() @ vectors)
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
            with torch.no_grad(), ieee_products(vectors.device):
                signs = (vectors @ vectors.T).masked_fill_(rows[:, None] == rows, 0).sign_()
            gradient = 2 * ieee_product(signs, vectors.T)
        return grad_total * gradient, None
