"""Search of the class centers nearest to each embedding, in chunks, so that no batch-by-classes matrix is held."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hgsl.common.precision import ieee_products
from hgsl.losses.scoring.coarse import coarse_search_pays, search_coarsely
from hgsl.losses.scoring.group_search import group_search_pays, search_by_groups
from hgsl.losses.scoring.similarity import nonzero

GROUP = 16  # rows that are reduced to their maximum before the top k


def fastest_method(x: Tensor, centers: Tensor, k: int) -> str:
    """Returns the fastest method of :func:`nearest_centers` for these sizes on this device."""
    if group_search_pays(x, centers, k):
        return "groups"
    return "coarse" if coarse_search_pays(x, centers, k) else "exact"


@torch.library.custom_op("hgsl::nearest_centers", mutates_args=())  # opaque to torch.compile, which would unroll it
def nearest_centers(
    x: Tensor, centers: Tensor, k: int, chunk_size: int, method: str = "fastest"
) -> tuple[Tensor, Tensor]:
    """Finds the centers with the largest cosine to each embedding; for unit ``x`` these are the nearest unit centers.

    Args:
        x: unit embeddings ``(B, D)``.
        centers: ``(C, D)``, of any norm in ``NORM_RANGE``.
        k: how many to find, at most C.
        chunk_size: centers multiplied at a time.
        method: ``exact`` multiplies in float32. ``coarse``, which preselects by bfloat16 products on a CPU, and
            ``groups``, by Triton on a GPU, have the same result up to the rounding of float32. ``fastest`` chooses.

    Returns:
        Their rows ``(B, k)`` int64, best first; the smallest and the largest norm of all centers ``(2,)``.
    """
    if method == "fastest":
        method = fastest_method(x, centers, k)
    if method == "groups":
        return search_by_groups(x, centers, k)
    result = search_coarsely(x, centers, k) if method == "coarse" else None
    if result is None:
        return _search_exactly(x, centers, k, chunk_size)
    rows, certain, norms = result
    if not certain.all():
        rows[~certain] = _search_exactly(x[~certain], centers, k, chunk_size)[0]
    return rows, torch.stack(norms.aminmax())


@nearest_centers.register_fake
def _(x: Tensor, centers: Tensor, k: int, chunk_size: int, method: str = "fastest") -> tuple[Tensor, Tensor]:
    return torch.empty(len(x), k, dtype=torch.int64, device=x.device), x.new_empty(2)


@nearest_centers.register_vmap
def _(
    info: Any,
    in_dims: Sequence[int | None],
    x: Tensor,
    centers: Tensor,
    k: int,
    chunk_size: int,
    method: str = "fastest",
) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
    """The search under ``torch.func.vmap``: at once where the centers are shared, else one after the other."""
    batches = x.movedim(in_dims[0], 0) if in_dims[0] is not None else x.expand(info.batch_size, *x.shape)
    if in_dims[1] is None:
        rows, norms = nearest_centers(batches.flatten(0, 1), centers, k, chunk_size, method)
        return (rows.unflatten(0, batches.shape[:2]), norms.expand(info.batch_size, -1)), (0, 0)
    tables = centers.movedim(in_dims[1], 0)
    results = [nearest_centers(*pair, k, chunk_size, method) for pair in zip(batches, tables, strict=True)]
    return (torch.stack([rows for rows, _ in results]), torch.stack([norms for _, norms in results])), (0, 0)


def _search_exactly(x: Tensor, centers: Tensor, k: int, chunk_size: int) -> tuple[Tensor, Tensor]:
    """Multiplies one chunk of centers at a time, and merges its best scores into a running top k."""
    best = x.new_empty(0, len(x))
    rows = torch.empty(0, len(x), dtype=torch.int64, device=x.device)
    norms = []
    length = min(chunk_size, len(centers))
    buffer = x.new_empty(length + -length % GROUP, len(x))
    for start in range(0, len(centers), chunk_size):
        chunk = centers[start : start + chunk_size].to(x.dtype)
        count = len(chunk)
        norm = torch.linalg.vector_norm(chunk, dim=1, keepdim=True)
        norms += norm.aminmax()
        with ieee_products(x.device):
            torch.mm(chunk, x.T, out=buffer[:count]).div_(nonzero(norm))  # (count, B)
        buffer[count:].fill_(-torch.inf)
        values, indices = _largest_rows(buffer, min(k, count))
        best, rows = torch.cat([best, values]), torch.cat([rows, indices + start])
        best, order = best.topk(min(k, len(best)), dim=0)
        rows = rows.gather(0, order)
    return rows.T.contiguous(), torch.stack(torch.stack(norms).aminmax())


def _largest_rows(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Returns the ``k`` largest of each column of ``(n, B)`` and their rows, both ``(k, B)``; GROUP divides n.

    They lie in the ``k`` groups of rows that have the largest maxima, and maxima are far cheaper than a top k.
    """
    groups = scores.unflatten(0, (-1, GROUP))  # (n / GROUP, GROUP, B)
    if len(groups) < 2 * k:
        result = scores.topk(k, dim=0)
        return result.values, result.indices
    nearest = groups.amax(dim=1).topk(k, dim=0).indices  # (k, B)
    members = groups.gather(0, nearest[:, None].expand(-1, GROUP, -1)).flatten(0, 1)
    values, indices = members.topk(k, dim=0)
    return values, nearest.gather(0, indices // GROUP) * GROUP + indices % GROUP
