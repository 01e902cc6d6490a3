"""Similarity of unit vectors: minus their smoothed Euclidean distance, or their cosine."""

import torch
from torch import Tensor

from hgsl.common.device import has_fast_float64, widest_float
from hgsl.common.precision import ieee_product, ieee_products

SIMILARITIES = ("euclidean", "cosine")
SMOOTHING = 1e-6  # under the square root of a distance: its gradient stays finite where points coincide
HOST_DEVICES = ("cpu",)  # whose values can be read without waiting for another device
NEAR = 0.5  # squared distances that lose digits when they are computed from a float32 product
NEAREST = 16  # of each embedding, taken for near on a GPU
MANY = 1 / 32  # share of near pairs above which a float64 product is faster than differences
PAIRS = 4096  # near pairs computed at a time
NORM_RANGE = (1e-12, 1e18)  # norms whose square is a float32; a smaller norm counts as zero


def unit(vectors: Tensor) -> Tensor:
    """Scales the last dimension to norm 1, for norms in ``NORM_RANGE``; zero stays zero."""
    return vectors / divisor(vectors)


def unit_of_any_norm(vectors: Tensor) -> Tensor:
    """Scales the last dimension to norm 1, also where squares would overflow or underflow; zero stays zero.

    For vectors of ordinary norm the result is bitwise that of :func:`unit`.
    """
    largest = vectors.detach().abs().amax(dim=-1, keepdim=True)
    is_extreme = ((largest < 1e-10) & (largest > 0)) | (largest > 1e15)
    factor = torch.where(is_extreme, largest.reciprocal().clamp_max(1e38), 1)
    return unit(vectors * factor)


def divisor(vectors: Tensor) -> Tensor:
    """Returns ``(..., 1)``, the norms of ``(..., D)``, or 1 where the norm is zero."""
    return nonzero(torch.linalg.vector_norm(vectors, dim=-1, keepdim=True))


def nonzero(norms: Tensor) -> Tensor:
    """Returns ``norms`` with 1 in place of zero, to divide by."""
    return norms.where(norms > NORM_RANGE[0], 1)


def matrix_similarity(x: Tensor, w: Tensor, similarity: str) -> Tensor:
    """Returns ``(B, C)``: ``1 - d`` (euclidean) or ``x . w`` (cosine) of ``x`` ``(B, D)`` and ``w`` ``(C, D)``.

    Both must come from :func:`unit`: their norms are treated as constants, since the gradient through it has no
    component along the vector.
    """
    if similarity == "cosine":
        return ieee_product(x, w)
    # |x|^2 + |w|^2 - 2 x.w cancels for near points, so it is summed in float64, which MPS does not support.
    a, b = (value.to(widest_float(x.device)) for value in (x, w))
    squares = a.detach().square().sum(dim=1, keepdim=True) + b.detach().square().sum(dim=1)
    return (1 - ((squares - 2 * (a @ b.T)).clamp_min(0) + SMOOTHING).sqrt()).to(x.dtype)


@torch.no_grad()
def cosines_and_squares(x: Tensor, centers: Tensor, norms: Tensor) -> tuple[Tensor, Tensor]:
    """Returns cosines and squared distances, both ``(B, C)``, of ``x`` and ``centers`` at norm 1, without gradient.

    ``|x|^2 + |w|^2 - 2 x.w`` cancels for near points. In float32, their squared distances are computed from
    differences: of all near pairs on a CPU; of the nearest of each embedding on a GPU, where the number of near pairs
    is not known without waiting for it. Float64 products are used instead where they are fast, or many pairs are near.

    Args:
        x: unit embeddings ``(B, D)``.
        centers: ``(C, D)``, of any norm and the dtype of ``x``.
        norms: of the centers, ``(C,)``.
    """
    if x.dtype == torch.float64:
        return _expanded(x, centers, norms)
    if has_fast_float64(x.device):
        return _expanded_in_float64(x, centers)
    cosines, squares = _expanded(x, centers, norms)
    if x.device.type in HOST_DEVICES:
        rows, columns = (squares < NEAR).nonzero(as_tuple=True)
        if len(rows) > MANY * squares.numel():
            return _expanded_in_float64(x, centers)
    else:
        nearest = squares.topk(min(NEAREST, len(centers)), dim=1, largest=False).indices
        rows, columns = torch.arange(len(x), device=x.device)[:, None].expand_as(nearest).flatten(), nearest.flatten()
    divisors = nonzero(norms)
    for i, j in zip(rows.split(PAIRS), columns.split(PAIRS), strict=True):
        differences = x.index_select(0, i) - centers.index_select(0, j) / divisors[j, None]
        squares[i, j] = differences.square_().sum(dim=1)
    return cosines, squares


def cosine_matrix(x: Tensor, centers: Tensor, divisors: Tensor) -> Tensor:
    """Returns the cosines ``(B, C)`` of unit ``x`` and of ``centers`` with their norms ``(C,)`` as ``divisors``."""
    with ieee_products(x.device):
        return (x @ centers.T).div_(divisors)


def _expanded(x: Tensor, centers: Tensor, norms: Tensor) -> tuple[Tensor, Tensor]:
    """Returns cosines and ``|x|^2 + |w|^2 - 2 x.w``, as they come from the product."""
    divisors = nonzero(norms)
    cosines = cosine_matrix(x, centers, divisors)
    lengths = norms / divisors  # 1, or 0 for a center of zero
    squares = torch.sub(lengths, cosines, alpha=2).add_(x.square().sum(dim=1, keepdim=True)).clamp_min_(0)
    return cosines, squares


def _expanded_in_float64(x: Tensor, centers: Tensor) -> tuple[Tensor, Tensor]:
    wide = centers.double()
    cosines, squares = _expanded(x.double(), wide, torch.linalg.vector_norm(wide, dim=1))
    return cosines.to(x.dtype), squares.to(x.dtype)


@torch.no_grad()
def normalize_(vectors: Tensor, rows: Tensor | None = None) -> None:
    """Scales ``vectors`` ``(C, D)``, or only the given ``rows``, to norm 1 in place.

    A row whose norm is 1 up to rounding is left unchanged bit for bit, so that a saved state dict loads exactly.
    """
    if rows is not None:
        vectors.index_copy_(0, rows, _rounded_unit(vectors[rows]))
        return
    for block in vectors.split(4096):  # so that no second copy of a large table is ever held
        block.copy_(_rounded_unit(block))


def _rounded_unit(vectors: Tensor) -> Tensor:
    norm = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    is_unit = (norm - 1).abs() < 16 * torch.finfo(vectors.dtype).eps
    return torch.where(is_unit, vectors, unit_of_any_norm(vectors))
