"""Similarity to a few gathered class centers, with a gradient for those rows alone."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hgsl.common.autograd import builds_graph, is_transformed
from hgsl.common.precision import ieee_products
from hgsl.losses.scoring.similarity import SMOOTHING, divisor, unit
from hgsl.losses.scoring.sparse_rows import sparse_rows

BY_DIFFERENCE = "donot_use_mm_for_euclid_dist"  # a compute_mode of torch.cdist


def gathered_similarity(
    x: Tensor, centers: Tensor, rows: Tensor, sampled: Tensor, similarity: str, sparse_grad: bool
) -> tuple[Tensor, Tensor]:
    """Scores each embedding against the centers in its ``rows``, and returns the ``sampled`` centers as well.

    Distances are computed from differences, which stay accurate for near points. The gathered vectors are by far the
    largest tensor of a step, so they are normalized in place, and their gradient is written to one tensor.

    Args:
        x: unit embeddings ``(B, D)``.
        centers: ``(C, D)``, of any norm.
        rows: ``(B, n)`` int64, the centers that each embedding is compared with.
        sampled: ``(m,)`` int64, further centers.
        similarity: ``"euclidean"`` or ``"cosine"``.
        sparse_grad: whether the gradient of ``centers`` is a sparse tensor.

    Returns:
        The similarities ``(B, n)``, and the sampled centers ``(m, D)`` at norm 1.
    """
    if is_transformed():
        return _plain_similarity(x, centers, rows, sampled, similarity, sparse_grad)
    scores, vectors = _Gathered.apply(x, centers, rows, sampled, similarity, sparse_grad)
    return scores, vectors


class _Gathered(torch.autograd.Function):
    """Scores ``f(x . w)`` of ``w = v / |v|``, for ``f(c) = c`` and for ``f(c) = 1 - sqrt(2 - 2c + 1e-6)``.

    The gradient of v is the component of x orthogonal to w, times the derivative: ``f' (x - (x . w) w) / |v|``.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, centers: Tensor, rows: Tensor, sampled: Tensor, similarity: str, sparse_grad: bool
    ) -> tuple[Tensor, Tensor]:
        indices = torch.cat([rows.flatten(), sampled])
        vectors = centers.index_select(0, indices).to(x.dtype)  # (B n + m, D), a copy
        norm = divisor(vectors)
        vectors.div_(norm)
        w = vectors[: rows.numel()].unflatten(0, rows.shape)  # (B, n, D)
        if similarity == "cosine":
            with ieee_products(x.device):
                scores = cosine = torch.linalg.vecdot(x[:, None], w)
            slope = torch.ones_like(scores)
        else:
            squared = torch.cdist(x[:, None], w, compute_mode=BY_DIFFERENCE).squeeze(1).square_()
            distance = (squared + SMOOTHING).sqrt_()
            scores, slope = 1 - distance, distance.reciprocal()
            cosine = (1 + x.square().sum(dim=1, keepdim=True) - squared) / 2
        ctx.save_for_backward(x, centers, vectors, norm, rows, sampled, slope, cosine)
        ctx.settings = similarity, sparse_grad
        return scores, vectors[rows.numel() :].clone()

    @staticmethod
    def backward(ctx: Any, grad_scores: Tensor, grad_sampled: Tensor) -> tuple[Tensor | None, ...]:
        x, centers, vectors, norm, rows, sampled, slope, cosine = ctx.saved_tensors
        similarity, sparse_grad = ctx.settings
        if builds_graph():
            gradients = _differentiable_gradients(
                x, centers, rows, sampled, similarity, sparse_grad, (grad_scores, grad_sampled)
            )
            return *gradients, None, None, None, None
        slope = grad_scores * slope  # (B, n)
        grad_x = grad_centers = None
        if ctx.needs_input_grad[0]:
            grad_x = _gradient_of_embeddings(x, vectors, slope, similarity)
        if ctx.needs_input_grad[1]:
            values = _gradient_of_rows(x, vectors, norm, slope, cosine, grad_sampled).to(centers.dtype)
            indices = torch.cat([rows.flatten(), sampled])
            if sparse_grad:
                grad_centers = _sparse(indices, values, slope.flatten() != 0, centers.shape)
            else:
                grad_centers = values.new_zeros(centers.shape).index_add_(0, indices, values)
        return grad_x, grad_centers, None, None, None, None


def _gradient_of_embeddings(x: Tensor, vectors: Tensor, slope: Tensor, similarity: str) -> Tensor:
    """Returns ``(B, D)``: the sum of ``slope * w``, less the sum of the slopes times ``x`` for distances."""
    w = vectors[: slope.numel()].unflatten(0, slope.shape)
    with ieee_products(x.device):
        gradient = torch.bmm(slope[:, None], w).squeeze(1)
    if similarity == "euclidean":
        gradient.addcmul_(slope.sum(dim=1, keepdim=True), x, value=-1)
    return gradient


def _gradient_of_rows(
    x: Tensor, vectors: Tensor, norm: Tensor, slope: Tensor, cosine: Tensor, grad_sampled: Tensor
) -> Tensor:
    """Returns the gradient ``(B n + m, D)`` of the gathered rows, compared ones first, before normalization."""
    count = slope.numel()
    values = torch.empty_like(vectors)
    along_x = slope / norm[:count].view_as(slope)
    w, compared = vectors[:count].unflatten(0, slope.shape), values[:count].unflatten(0, slope.shape)
    torch.mul(w, (-along_x * cosine)[:, :, None], out=compared)
    compared.addcmul_(along_x[:, :, None], x[:, None])
    others = vectors[count:]
    along_w = (grad_sampled * others).sum(dim=1, keepdim=True)
    torch.div(grad_sampled - along_w * others, norm[count:], out=values[count:])
    return values


def _sparse(indices: Tensor, values: Tensor, used: Tensor, shape: torch.Size) -> Tensor:
    """Returns the sparse ``(C, D)`` gradient without the compared rows that are not ``used``.

    Their gradients are zero, but SparseAdam would update these rows all the same. The zeros are added to another row
    instead, which is far cheaper than removing them, and does not wait for a GPU.
    """
    count = len(used)
    if len(indices) > count:
        row_with_gradient = indices[count]
    elif used.device.type != "cpu" or used.any():  # a GPU is not asked; there all-zero gradients update one row
        row_with_gradient = indices.index_select(0, used.byte().argmax()[None])
    else:
        return sparse_rows(indices[:0], values[:0], shape)
    indices = torch.cat([indices[:count].where(used, row_with_gradient), indices[count:]])
    return sparse_rows(indices, values, shape)


def _plain_similarity(
    x: Tensor, centers: Tensor, rows: Tensor, sampled: Tensor, similarity: str, sparse_grad: bool
) -> tuple[Tensor, Tensor]:
    """Returns what :func:`gathered_similarity` does, from operations that can be differentiated and transformed."""
    # Both parts in one lookup: that of no rows, where nothing is sampled, cannot be differentiated twice.
    vectors = unit(F.embedding(torch.cat([rows.flatten(), sampled]), centers, sparse=sparse_grad).to(x.dtype))
    w, others = vectors[: rows.numel()].unflatten(0, rows.shape), vectors[rows.numel() :]
    if similarity == "cosine":
        return torch.linalg.vecdot(x[:, None], w), others
    return 1 - ((x[:, None] - w).square().sum(dim=2) + SMOOTHING).sqrt(), others


def _differentiable_gradients(
    x: Tensor,
    centers: Tensor,
    rows: Tensor,
    sampled: Tensor,
    similarity: str,
    sparse_grad: bool,
    grad_outputs: tuple[Tensor, Tensor],
) -> list[Tensor | None]:
    """Returns the gradients of ``x`` and ``centers`` from plain operations, which can be differentiated again."""
    scores, others = _plain_similarity(x, centers, rows, sampled, similarity, sparse_grad)
    pairs = list(zip((scores, others), grad_outputs, strict=True))
    outputs, gradients = zip(*[pair for pair in pairs if pair[0].requires_grad], strict=True)
    inputs = [value for value in (x, centers) if value.requires_grad]
    results = iter(torch.autograd.grad(outputs, inputs, gradients, create_graph=True))
    return [next(results) if value.requires_grad else None for value in (x, centers)]
