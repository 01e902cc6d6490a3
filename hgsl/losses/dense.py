"""Losses of embeddings that are compared with every class center, by few large operations.

A step is three matrix products, two passes over the centers and a dozen over the scores; the centers are not copied.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hgsl.common.autograd import builds_graph
from hgsl.common.precision import ieee_products
from hgsl.losses.hard_set import class_losses, score_classes
from hgsl.losses.scoring.dense_scores import center_gradients, cosines_and_distances
from hgsl.losses.scoring.similarity import nonzero


@dataclass(frozen=True)
class DenseOptions:
    """The settings of the loss: K, or None for every class, and the others as in ``hard_global_softmin_loss``."""

    k: int | None
    hard_set: str
    margin: float
    similarity: str
    sparse_grad: bool


def dense_losses(
    x: Tensor,
    centers: Tensor,
    labels: Tensor,
    alpha: float | Tensor,
    norms: Tensor,
    sampled: Tensor,
    options: DenseOptions,
) -> tuple[Tensor, Tensor]:
    """Returns the losses ``(B,)`` of embeddings compared with every center, and the ``sampled`` centers at norm 1.

    Args:
        x: unit embeddings ``(B, D)``.
        centers: ``(C, D)``, of any norm.
        labels: ``(B,)`` int64 in ``[0, C)``.
        alpha: softness.
        norms: ``(C,)``, of the centers.
        sampled: ``(m,)`` int64, rows of centers.
        options: See :class:`DenseOptions`.
    """
    softness = alpha if isinstance(alpha, Tensor) else torch.full((), alpha, dtype=x.dtype, device=x.device)
    losses, vectors = _DenseLosses.apply(x, centers, softness, labels, norms, sampled, options)
    return losses, vectors


class _DenseLosses(torch.autograd.Function):
    """Losses with gradients of embeddings, centers and softness.

    With norms ``n_j`` of the centers ``v_j``, the softmax ``p`` over the hard set, and ``q_ij = p_ij - [j = y_i]``::

        c_ij = x_i . v_j / n_j        h_ij = s q_ij f_ij / n_j        f_ij = 1 / d_ij (euclidean) or 1 (cosine)
        dL_i / dx_i = sum_j h_ij v_j         dL_i / dv_j = h_ij (x_i - c_ij v_j / n_j)         dL_i / ds = q_i . z_i / s

    The gradient of ``x_i`` lacks its component along ``x_i``, which the normalization of the embeddings removes anyway.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        centers: Tensor,
        alpha: Tensor,
        labels: Tensor,
        norms: Tensor,
        sampled: Tensor,
        options: DenseOptions,
    ) -> tuple[Tensor, Tensor]:
        table, divisors, target = centers.to(x.dtype), nonzero(norms), labels[:, None]
        scale = 10 / alpha.to(x.dtype)
        cosines, distances = cosines_and_distances(x, table, norms, options.similarity)
        z = cosines * scale if distances is None else torch.sub(1, distances).mul_(scale)
        if options.margin:
            z.scatter_add_(1, target, (-options.margin * scale).expand(target.shape))
        z.sub_(z.gather(1, target))  # changes neither the losses nor sums of q z, which cancel less
        losses, q = _hard_softmax(z, target, options.k, options.hard_set)
        gradient_of_alpha = z.mul_(q).sum(dim=1).div_(-alpha)  # (B,)
        h = q.mul_(scale / divisors)
        if distances is not None:
            h.div_(distances)
        vectors = table.index_select(0, sampled).div_(divisors[sampled, None])
        ctx.save_for_backward(
            x, centers, alpha, labels, sampled, divisors, h, cosines.mul_(h), gradient_of_alpha, vectors
        )
        ctx.options = options
        return losses, vectors

    @staticmethod
    def backward(ctx: Any, grad_losses: Tensor, grad_sampled: Tensor) -> tuple[Tensor | None, ...]:
        x, centers, alpha, labels, sampled, divisors, h, projections, gradient_of_alpha, vectors = ctx.saved_tensors
        needed = ctx.needs_input_grad[:3]
        if builds_graph():
            inputs = (x, centers, alpha)
            gradients = _differentiable_gradients(inputs, labels, sampled, ctx.options, (grad_losses, grad_sampled))
            return *gradients, None, None, None, None
        grad_x = grad_centers = grad_alpha = None
        with ieee_products(x.device):
            if needed[0]:
                grad_x = (h @ centers.to(x.dtype)).mul_(grad_losses[:, None])
            if needed[1]:
                toward, along = h.T @ (x * grad_losses[:, None]), grad_losses @ projections  # (C, D), (C,)
        if needed[1]:
            selection = (sampled, vectors, grad_sampled)
            grad_centers = center_gradients(toward, along, centers, divisors, selection, ctx.options.sparse_grad)
        if needed[2]:
            grad_alpha = (grad_losses * gradient_of_alpha).sum().to(alpha.dtype).reshape(alpha.shape)
        return grad_x, grad_centers, grad_alpha, None, None, None, None


def _hard_softmax(z: Tensor, target: Tensor, k: int | None, hard_set: str) -> tuple[Tensor, Tensor]:
    """Returns the losses ``(B,)``, and ``(B, C)`` the softmax over the hard set, less 1 for the true class.

    The logits ``z`` are relative to those of the true class.
    """
    if k is None:
        logarithms = z.log_softmax(dim=1)
        losses = -logarithms.gather(1, target)
        q = logarithms.exp_()
    else:
        others = z.scatter(1, target, -torch.inf) if hard_set == "negatives" else z
        values, columns = others.topk(k, dim=1)
        if hard_set == "negatives":
            values, columns = torch.cat([z.gather(1, target), values], dim=1), torch.cat([target, columns], dim=1)
        losses = values.logsumexp(dim=1, keepdim=True)
        q = torch.zeros_like(z).scatter_(1, columns, (values - losses).exp_())
    q.scatter_add_(1, target, torch.full_like(losses, -1))
    return losses.squeeze(1), q


def _differentiable_gradients(
    inputs: tuple[Tensor, Tensor, Tensor],
    labels: Tensor,
    sampled: Tensor,
    options: DenseOptions,
    grad_outputs: tuple[Tensor, Tensor],
) -> list[Tensor | None]:
    """Returns the gradients of ``x``, ``centers`` and ``alpha`` from plain operations, which can be differentiated."""
    x, centers, alpha = inputs
    scores, excluded, vectors = score_classes(
        x, centers, labels, None, sampled, options.similarity, options.sparse_grad
    )
    losses = class_losses(scores, excluded, alpha, options.margin, options.k, options.hard_set)
    pairs = zip((losses, vectors), grad_outputs, strict=True)
    outputs, gradients = zip(*[pair for pair in pairs if pair[0].requires_grad], strict=True)
    needed = [value for value in inputs if value.requires_grad]
    results = iter(torch.autograd.grad(outputs, needed, gradients, create_graph=True, allow_unused=True))
    return [next(results) if value.requires_grad else None for value in inputs]
