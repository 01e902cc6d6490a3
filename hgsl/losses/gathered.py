"""Similarity of embeddings to a few centres each, with a gradient for those centres alone."""

from typing import Any

import torch
from torch import Tensor

from hgsl.losses.similarity import SMOOTHING, divisor

BY_DIFFERENCE = "donot_use_mm_for_euclid_dist"


def gathered_similarity(x: Tensor, centers: Tensor, rows: Tensor, similarity: str, sparse_grad: bool) -> Tensor:
    """Returns ``(B, n)``: the similarity of ``x_i`` to the normalised centres in ``rows_i``.

    Distances are norms of differences, which keep the digits of near points. The gathered vectors are by far the
    largest tensors here, so they are normalised in place and their gradient is written in one piece.

    Args:
        x: unit embeddings ``(B, D)``.
        centers: ``(C, D)``, of any norm.
        rows: ``(B, n)`` int64.
        similarity: ``"euclidean"`` or ``"cosine"``.
        sparse_grad: whether the gradient of ``centers`` is a sparse tensor.
    """
    scores: Tensor = _GatheredSimilarity.apply(x, centers, rows, similarity, sparse_grad)
    return scores


class _GatheredSimilarity(torch.autograd.Function):
    """Score ``f(x . w)`` of ``w = v / |v|``, both for ``f(c) = c`` and for ``f(c) = 1 - sqrt(2 - 2c + 1e-6)``.

    With slope ``f'``, x moves along w, and v along the part of x at right angles to w: ``f' (x - (x . w) w) / |v|``.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, centers: Tensor, rows: Tensor, similarity: str, sparse_grad: bool) -> Tensor:
        w = centers.index_select(0, rows.flatten()).to(x.dtype).unflatten(0, rows.shape)  # (B, n, D), ours alone
        norm = divisor(w)  # (B, n, 1)
        w.div_(norm)
        if similarity == "cosine":
            scores = cosine = torch.linalg.vecdot(x[:, None], w)
            slope = torch.ones_like(scores)
        else:
            squared = torch.cdist(x[:, None], w, compute_mode=BY_DIFFERENCE).squeeze(1).square_()  # (B, n)
            distance = (squared + SMOOTHING).sqrt_()
            scores, slope = 1 - distance, distance.reciprocal()
            cosine = (1 + x.square().sum(dim=1, keepdim=True) - squared) / 2
        ctx.save_for_backward(x, w, norm.squeeze(-1), rows, slope, cosine)
        ctx.like = centers.shape, centers.dtype, similarity, sparse_grad
        return scores

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        x, w, norm, rows, slope, cosine = ctx.saved_tensors
        shape, dtype, similarity, sparse_grad = ctx.like
        slope = grad * slope
        grad_x = grad_centers = None
        if ctx.needs_input_grad[0]:
            grad_x = torch.bmm(slope[:, None], w).squeeze(1)  # (B, D)
            if similarity == "euclidean":
                grad_x.addcmul_(slope.sum(dim=1, keepdim=True), x, value=-1)
        if ctx.needs_input_grad[1]:
            along_x = slope / norm
            values = w * (-along_x * cosine)[:, :, None]
            values.addcmul_(along_x[:, :, None], x[:, None])
            values, rows = values.flatten(0, 1).to(dtype), rows.flatten()
            if sparse_grad:
                used = slope.flatten().nonzero().squeeze(1)  # the hard set: Adam moves a row even by zero
                if len(used) < len(values):
                    values, rows = values[used], rows[used]
                grad_centers = torch.sparse_coo_tensor(rows[None], values, shape, check_invariants=False)
            else:
                grad_centers = values.new_zeros(shape).index_add_(0, rows, values)
        return grad_x, grad_centers, None, None, None
