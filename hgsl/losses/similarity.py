"""How close unit vectors are: minus their smoothed euclidean distance, or their cosine."""

import torch
from torch import Tensor

SIMILARITIES = ("euclidean", "cosine")
SMOOTHING = 1e-6  # under the root of a distance, so that its slope stays finite where two points meet


def unit(vectors: Tensor) -> Tensor:
    """Scales the last dimension to norm 1; a vector too small or too large to tell its norm becomes (nearly) zero."""
    return vectors / divisor(vectors)


def divisor(vectors: Tensor) -> Tensor:
    """Returns ``(..., 1)``, the norms of ``(..., D)``, or 1 where the norm is (nearly) zero."""
    norm = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return norm.where(norm > 1e-12, 1)


def matrix_similarity(x: Tensor, w: Tensor, kind: str) -> Tensor:
    """Returns ``(B, C)``: ``1 - d`` (euclidean) or ``x . w`` (cosine) of ``x`` ``(B, D)`` and ``w`` ``(C, D)``.

    Both must come from :func:`unit`: their norms are taken as constants, since its gradient has no part along them.
    """
    if kind == "cosine":
        return x @ w.T
    # |x|^2 + |w|^2 - 2 x.w cancels for near points, so it is summed in float64, which MPS does not have.
    wide = torch.float32 if x.device.type == "mps" else torch.float64
    a, b = x.to(wide), w.to(wide)
    squares = a.detach().square().sum(dim=1, keepdim=True) + b.detach().square().sum(dim=1)
    return (1 - ((squares - 2 * (a @ b.T)).clamp_min(0) + SMOOTHING).sqrt()).to(x.dtype)


@torch.no_grad()
def normalize_(vectors: Tensor, rows: Tensor | None = None) -> None:
    """Scales ``vectors`` ``(C, D)``, or only the given ``rows``, to norm 1 in place.

    A row that has norm 1 up to rounding stays as it is to the last bit, so that loading what was saved changes nothing.
    """
    if rows is not None:
        vectors.index_copy_(0, rows, _rounded_unit(vectors[rows]))
        return
    for block in vectors.split(4096):  # so that no second copy of a large table is ever held
        block.copy_(_rounded_unit(block))


def _rounded_unit(vectors: Tensor) -> Tensor:
    norm = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    is_unit = (norm - 1).abs() < 16 * torch.finfo(vectors.dtype).eps
    return torch.where(is_unit, vectors, unit(vectors))
