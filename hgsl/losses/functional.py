"""The Hard Global Softmin Loss as pure functions of embeddings, class centres and labels."""

import torch
from torch import Tensor

from hgsl.common.errors import InputError, unknown

HARD_SETS = ("all", "negatives")
SMOOTHING = 1e-6  # under the root of a distance, so that its slope stays finite where two points meet


def hard_global_softmin_loss(
    embeddings: Tensor,
    centers: Tensor,
    labels: Tensor,
    alpha: float | Tensor = 0.1,
    top_k: int | None = None,
    hard_set: str = "all",
) -> Tensor:
    """Pulls each embedding to the centre of its class, away from the K centres nearest to it.

    With unit embeddings ``x_i`` and unit centres ``w_j`` (both are normalised here, and gradients go through it)::

        d_ij = sqrt(|x_i - w_j|^2 + 1e-6)      z_ij = s (1 - d_ij)      s = 10 / alpha
        L    = mean_i [ logsumexp over H_i of z_ij  -  z_iy ]

    Args:
        embeddings: ``(B, D)``, of any norm.
        centers: ``(C, D)``, one row a class, of any norm.
        labels: ``(B,)`` int64 in ``[0, C)``.
        alpha: softness; ``s = 10 / alpha``. A tensor receives a gradient.
        top_k: K, the size of ``H_i``; None takes every class.
        hard_set: ``"all"``: ``H_i`` is the K largest ``z_ij`` over all classes, so it may lack the true one.
            ``"negatives"``: ``H_i`` is the K largest over the other classes, and the true one.

    Returns:
        The mean loss, a scalar of at least float32.

    Raises:
        InputError: ``hard_set`` or ``top_k`` is not one of the values above.
    """
    logits = class_logits(embeddings, centers, alpha)
    k = hard_set_size(top_k, len(centers), hard_set)
    true = logits.gather(1, labels[:, None])  # (B, 1)
    if hard_set == "negatives":
        others = logits.scatter(1, labels[:, None], -torch.inf)
        hard = torch.cat([true, others.topk(k).values], dim=1)
    else:
        hard = logits.topk(k).values if k < len(centers) else logits
    return (hard.logsumexp(dim=1) - true.squeeze(1)).mean()


def class_logits(embeddings: Tensor, centers: Tensor, alpha: float | Tensor = 0.1) -> Tensor:
    """Returns ``z`` ``(B, C)``, the scaled closeness of every embedding ``(B, D)`` to every centre ``(C, D)``."""
    dtype = torch.promote_types(torch.promote_types(embeddings.dtype, centers.dtype), torch.float32)
    with torch.autocast(embeddings.device.type, enabled=False):
        x, w = unit(embeddings.to(dtype)), unit(centers.to(dtype))
        return 10 / alpha * (1 - _distances(x, w))


def unit(vectors: Tensor) -> Tensor:
    """Scales the last dimension to norm 1; a vector of norm (nearly) 0 is left as it is, with a finite gradient."""
    norm = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return vectors / norm.where(norm > 1e-12, 1)


def decorrelation(centers: Tensor) -> Tensor:
    """Returns the mean of ``|w_j . w_l|`` over the pairs ``j != l`` of unit centres ``(C, D)``."""
    w = unit(centers)
    count = len(w)
    if count < 2:
        return w.sum() * 0
    off_diagonal = ~torch.eye(count, dtype=torch.bool, device=w.device)
    return ((w @ w.T).abs() * off_diagonal).sum() / (count * (count - 1))


def hard_set_size(top_k: int | None, num_classes: int, hard_set: str) -> int:
    """Returns K for ``top_k`` (None: as many as there are).

    Raises:
        InputError: ``hard_set`` is unknown, or ``top_k`` is below 1 or above the number of classes to choose from.
    """
    if hard_set not in HARD_SETS:
        raise unknown("hard_set", hard_set, HARD_SETS)
    largest = num_classes if hard_set == "all" else num_classes - 1
    if top_k is None:
        return largest
    if not 1 <= top_k <= largest:
        raise InputError(
            f"top_k is {top_k}: with {num_classes} classes and hard_set {hard_set!r} use 1 to {largest}, "
            "or None for all of them"
        )
    return int(top_k)


def _distances(x: Tensor, w: Tensor) -> Tensor:
    # |x|^2 + |w|^2 - 2 x.w cancels for near points, so it is summed in float64, which MPS does not have.
    wide = torch.float32 if x.device.type == "mps" else torch.float64
    a, b = x.to(wide), w.to(wide)
    squared = a.square().sum(1)[:, None] + b.square().sum(1) - 2 * (a @ b.T)
    return (squared.clamp_min(0) + SMOOTHING).sqrt().to(x.dtype)
