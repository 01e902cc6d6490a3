"""Similarities of embeddings to every class center by float32 products, and the gradients of the centers."""

from typing import Any

import torch
from torch import Tensor

from hgsl.common.autograd import refuse_second_derivative
from hgsl.common.precision import ieee_products
from hgsl.losses.scoring.similarity import SMOOTHING, cosine_matrix, cosines_and_squares, nonzero
from hgsl.losses.scoring.sparse_rows import sparse_rows


def dense_scores(
    x: Tensor, centers: Tensor, norms: Tensor, sampled: Tensor, similarity: str, sparse_grad: bool
) -> tuple[Tensor, Tensor]:
    """Returns the similarities ``(B, C)`` of embeddings to every center, and the ``sampled`` centers at norm 1.

    The gradient of ``x`` lacks its component along ``x``. There is no second derivative.

    Args:
        x: unit embeddings ``(B, D)``.
        centers: ``(C, D)``, of any norm.
        norms: ``(C,)``, of the centers.
        sampled: ``(m,)`` int64, rows of centers.
        similarity: ``"euclidean"`` or ``"cosine"``.
        sparse_grad: whether the gradient of ``centers`` is a sparse tensor.
    """
    return _DenseScores.apply(x, centers, norms, sampled, similarity, sparse_grad)


class _DenseScores(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, centers: Tensor, norms: Tensor, sampled: Tensor, similarity: str, sparse_grad: bool
    ) -> tuple[Tensor, Tensor]:
        table, divisors = centers.to(x.dtype), nonzero(norms)
        cosines, distances = cosines_and_distances(x, table, norms, similarity)
        vectors = table.index_select(0, sampled).div_(divisors[sampled, None])
        ctx.save_for_backward(x, centers, divisors, sampled, vectors, cosines, distances)
        ctx.sparse_grad = sparse_grad
        return (cosines.clone() if distances is None else 1 - distances), vectors

    @staticmethod
    def backward(ctx: Any, grad_scores: Tensor, grad_sampled: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative("a loss over several processes", "compute it in one process")
        x, centers, divisors, sampled, vectors, cosines, distances = ctx.saved_tensors
        grad_x = grad_centers = None
        h = grad_scores / divisors
        if distances is not None:
            h.div_(distances)
        with ieee_products(x.device):
            if ctx.needs_input_grad[0]:
                grad_x = h @ centers.to(x.dtype)
            if ctx.needs_input_grad[1]:
                toward = h.T @ x
        if ctx.needs_input_grad[1]:
            along = h.mul_(cosines).sum(dim=0)
            selection = (sampled, vectors, grad_sampled)
            grad_centers = center_gradients(toward, along, centers, divisors, selection, ctx.sparse_grad)
        return grad_x, grad_centers, None, None, None, None


def cosines_and_distances(x: Tensor, table: Tensor, norms: Tensor, similarity: str) -> tuple[Tensor, Tensor | None]:
    """Returns the cosines ``(B, C)`` and, for ``"euclidean"``, the smoothed distances ``(B, C)``, without gradient.

    Args:
        x: unit embeddings ``(B, D)``.
        table: the centers ``(C, D)``, of any norm and the dtype of ``x``.
        norms: of the centers, ``(C,)``.
        similarity: ``"euclidean"`` or ``"cosine"``.
    """
    if similarity == "cosine":
        return cosine_matrix(x, table, nonzero(norms)), None
    cosines, squares = cosines_and_squares(x, table, norms)
    return cosines, squares.add_(SMOOTHING).sqrt_()


def center_gradients(
    toward: Tensor,
    along: Tensor,
    centers: Tensor,
    divisors: Tensor,
    selection: tuple[Tensor, Tensor, Tensor],
    sparse_grad: bool,
) -> Tensor:
    """Returns the gradient ``(C, D)`` of the centers before their normalization, in their dtype.

    With norms ``n_j`` of the centers ``v_j`` and slopes ``h_ij``, it is ``sum_i h_ij (x_i - c_ij v_j / n_j)``, and that
    of the selected centers at norm 1.

    Args:
        toward: ``sum_i h_ij x_i`` ``(C, D)``; it is overwritten.
        along: ``sum_i h_ij c_ij`` ``(C,)``.
        centers: ``(C, D)``.
        divisors: ``(C,)``, the norms, 1 for a center of zero.
        selection: rows of the centers ``(m,)``, these at norm 1 ``(m, D)``, and their gradient ``(m, D)``.
        sparse_grad: whether the gradient is a sparse tensor.
    """
    gradients = toward.addcmul_(centers.to(toward.dtype), along.div(divisors)[:, None], value=-1)
    sampled, vectors, grad_sampled = selection
    if len(sampled):
        along_w = (grad_sampled * vectors).sum(dim=1, keepdim=True)
        gradients.index_add_(0, sampled, (grad_sampled - along_w * vectors).div_(divisors[sampled, None]))
    gradients = gradients.to(centers.dtype)
    if not sparse_grad:
        return gradients
    rows = torch.arange(len(centers), device=centers.device)
    return sparse_rows(rows, gradients, centers.shape)
