"""The few centers that a batch needs: gathered, normalized and compared, with a gradient for those rows alone."""

from typing import Any

import torch
from torch import Tensor

from hgsl.losses.similarity import SMOOTHING, divisor

BY_DIFFERENCE = "donot_use_mm_for_euclid_dist"


def gathered_similarity(
    x: Tensor, centers: Tensor, rows: Tensor, drawn: Tensor, similarity: str, sparse_grad: bool
) -> tuple[Tensor, Tensor]:
    """Compares embeddings with centers of their own, and hands out some normalized centers besides.

    Distances are norms of differences, which keep the digits of near points. The gathered vectors are by far the
    largest tensors of a step, so they are normalized in place, and all of the gradient is written in one piece.

    Args:
        x: unit embeddings ``(B, D)``.
        centers: ``(C, D)``, of any norm.
        rows: ``(B, n)`` int64, the centers that each embedding is compared with.
        drawn: ``(m,)`` int64, further centers.
        similarity: ``"euclidean"`` or ``"cosine"``.
        sparse_grad: whether the gradient of ``centers`` is a sparse tensor.

    Returns:
        The similarities ``(B, n)``, and the drawn centers ``(m, D)`` at norm 1.
    """
    scores, vectors = _Gathered.apply(x, centers, rows, drawn, similarity, sparse_grad)
    return scores, vectors


class _Gathered(torch.autograd.Function):
    """Scores ``f(x . w)`` of ``w = v / |v|``, for ``f(c) = c`` and for ``f(c) = 1 - sqrt(2 - 2c + 1e-6)``.

    With slope ``f'``, x moves along w, and v along the part of x at right angles to w: ``f' (x - (x . w) w) / |v|``.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, centers: Tensor, rows: Tensor, drawn: Tensor, similarity: str, sparse_grad: bool
    ) -> tuple[Tensor, Tensor]:
        places = torch.cat([rows.flatten(), drawn])
        vectors = centers.index_select(0, places).to(x.dtype)  # (B n + m, D), ours alone
        norm = divisor(vectors)
        vectors.div_(norm)
        w = vectors[: rows.numel()].unflatten(0, rows.shape)  # (B, n, D)
        if similarity == "cosine":
            scores = cosine = torch.linalg.vecdot(x[:, None], w)
            slope = torch.ones_like(scores)
        else:
            squared = torch.cdist(x[:, None], w, compute_mode=BY_DIFFERENCE).squeeze(1).square_()
            distance = (squared + SMOOTHING).sqrt_()
            scores, slope = 1 - distance, distance.reciprocal()
            cosine = (1 + x.square().sum(dim=1, keepdim=True) - squared) / 2
        ctx.save_for_backward(x, vectors, norm, places, slope, cosine)
        ctx.settings = centers.shape, centers.dtype, similarity, sparse_grad
        return scores, vectors[rows.numel() :].clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_scores: Tensor, grad_drawn: Tensor) -> tuple[Tensor | None, ...]:
        x, vectors, norm, places, slope, cosine = ctx.saved_tensors
        shape, dtype, similarity, sparse_grad = ctx.settings
        slope = grad_scores * slope  # (B, n)
        count = slope.numel()
        w = vectors[:count].unflatten(0, slope.shape)
        grad_x = grad_centers = None
        if ctx.needs_input_grad[0]:
            grad_x = torch.bmm(slope[:, None], w).squeeze(1)  # (B, D)
            if similarity == "euclidean":
                grad_x.addcmul_(slope.sum(dim=1, keepdim=True), x, value=-1)
        if ctx.needs_input_grad[1]:
            values = torch.empty_like(vectors)
            along_x = slope / norm[:count].view_as(slope)
            compared = values[:count].unflatten(0, slope.shape)
            torch.mul(w, (-along_x * cosine)[:, :, None], out=compared)
            compared.addcmul_(along_x[:, :, None], x[:, None])
            others = vectors[count:]
            along_w = (grad_drawn * others).sum(dim=1, keepdim=True)
            torch.div(grad_drawn - along_w * others, norm[count:], out=values[count:])
            values = values.to(dtype)
            if sparse_grad:
                grad_centers = _sparse(places, values, slope.flatten() != 0, shape)
            else:
                grad_centers = values.new_zeros(shape).index_add_(0, places, values)
        return grad_x, grad_centers, None, None, None, None


def _sparse(places: Tensor, values: Tensor, used: Tensor, shape: torch.Size) -> Tensor:
    """Returns the sparse ``(C, D)`` gradient without the compared rows that are not ``used``.

    They are all zero, but would count as touched, and Adam moves a row even then. Their zeros are added to some other
    row, which is far cheaper than to leave them out.
    """
    count = len(used)
    kept = torch.cat([places[:count][used][:1], places[count:][:1]])  # a row with a gradient, if there is one
    if not len(kept):
        places, values = places[:0], values[:0]
    else:
        places = torch.cat([places[:count].where(used, kept[0]), places[count:]])
    return torch.sparse_coo_tensor(places[None], values, shape, check_invariants=False)
