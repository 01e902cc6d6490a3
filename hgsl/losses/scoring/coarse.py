"""Coarse search of the nearest class centers in bfloat16, with a bound on its error and exact scores of candidates.

Matrix units multiply bfloat16 several times as fast as float32. Blocks of centers are converted while they are in the
processor's cache, so that no copy of the centers exists that could be out of date. The search keeps the candidates with
the largest coarse scores and scores them in float32. With the k-th best of these scores ``t`` and the largest coarse
score ``c`` of all other centers, no other center is among the k nearest if ``t > c + bound``; where this does not hold,
the exact search follows.

The bound: with ``u = 2^-8``, the unit roundoff of bfloat16, the rounded embedding ``x~`` and unit center ``w~`` have

    |x . w  -  x~ . w~|  <=  |x - x~| |w| + |x~| |w - w~|  <=  |x - x~| + u |x~|

to which float32 sums over D products add at most ``D 2^-23`` each, and the rounding of the coarse score ``u |c|``.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from hgsl.common.device import cpu_has_amx
from hgsl.common.precision import ieee_products

UNIT_ROUNDOFF = 2.0**-8  # of bfloat16
RELATIVE = 1.02 * UNIT_ROUNDOFF  # of a coarse score: its rounding, and norms of centers within NORM_TOLERANCE of 1
NORM_TOLERANCE = 1e-5
GROUP = 16  # centers that are reduced to their maximum before the top k
PIECE, BLOCK = 256, 4096  # centers converted, while they are in cache, and multiplied at a time; multiples of GROUP
PROBE = 8192  # centers of the first chunk, which shows whether scores separate
SCORES = 2**24  # coarse scores held at a time
CANDIDATES = (48, 4)  # at least so many, and so many per center sought
REFINED = 128  # embeddings whose candidates are gathered at a time
PAYS_FROM = {"batch": 64, "classes": 32768, "dimension": 64}


class Candidates(NamedTuple):
    """The centers with the largest coarse scores, best first, and an upper bound of the coarse scores of all others."""

    rows: Tensor  # (B, m)
    scores: Tensor  # (B, m) float32
    rest: Tensor  # (B, 1) float32


def coarse_search_pays(x: Tensor, centers: Tensor, k: int) -> bool:
    """Whether the coarse search is faster: on a processor with matrix units, for large float32 products."""
    sizes = {"batch": len(x), "classes": len(centers), "dimension": centers.shape[1]}
    return (
        x.device.type == "cpu"
        and x.dtype == centers.dtype == torch.float32
        and all(sizes[name] >= least for name, least in PAYS_FROM.items())
        and GROUP * _candidate_count(k) <= PROBE
        and cpu_has_amx()
    )


def search_coarsely(x: Tensor, centers: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor] | None:
    """Finds the ``k`` centers with the largest cosine to each embedding, where it can be certain of them.

    Args:
        x: unit embeddings ``(B, D)`` float32.
        centers: ``(C, D)`` float32.
        k: how many to find.

    Returns:
        Rows ``(B, k)`` int64, best first; ``(B,)`` bool, whether they are certain; the norms of the centers ``(C,)``.
        None if centers have another norm than 1, or do not separate, so that an exact search is faster.
    """
    norms, bound = x.new_empty(len(centers)), _error_bound(x)
    candidates = _find_candidates(x, centers, k, norms, bound)
    if candidates is None:
        return None
    scores = _exact_scores(x, centers, candidates.rows)
    best, order = scores.topk(k, dim=1)
    coarse, rest = candidates.scores, candidates.rest
    is_bounded = ((scores - coarse).abs() <= bound + RELATIVE * coarse.abs()).all(dim=1)  # false on a faulty product
    certain = is_bounded & (best[:, -1:] > rest + bound + RELATIVE * rest.abs()).squeeze(1)
    return candidates.rows.gather(1, order), certain, norms


def _candidate_count(k: int) -> int:
    at_least, per_center = CANDIDATES
    return max(at_least, per_center * k)


def _error_bound(x: Tensor) -> Tensor:
    """Returns ``(B, 1)``, the bound on the error of coarse scores before they are rounded, and of the exact scores."""
    rounded = x.bfloat16().float()
    length = torch.linalg.vector_norm(rounded, dim=1, keepdim=True)
    sums = 2 * x.shape[1] * 2.0**-23
    return torch.linalg.vector_norm(x - rounded, dim=1, keepdim=True) + RELATIVE * length + sums


def _exact_scores(x: Tensor, centers: Tensor, rows: Tensor) -> Tensor:
    """Returns the cosines ``(B, m)`` of embeddings to the centers in their ``rows``, from float32 products."""
    parts = []
    for part, part_rows in zip(x.split(REFINED), rows.split(REFINED), strict=True):
        vectors = centers.index_select(0, part_rows.flatten()).unflatten(0, part_rows.shape)  # (b, m, D)
        norms = torch.linalg.vector_norm(vectors, dim=2)
        with ieee_products(x.device):
            parts.append(torch.bmm(vectors, part[:, :, None]).squeeze(2) / norms)
    return torch.cat(parts)


def _find_candidates(x: Tensor, centers: Tensor, k: int, norms: Tensor, bound: Tensor) -> Candidates | None:
    """Returns the candidates, and fills ``norms``; None where an exact search is faster."""
    count, m = len(centers), _candidate_count(k)
    rounded = x.bfloat16().T
    chunk = max(PROBE, SCORES // len(x) // BLOCK * BLOCK)
    scores = rounded.new_empty(min(chunk, count + -count % GROUP), len(x))
    parts: list[Candidates] = []
    for start in (0, *range(PROBE, count, chunk)):
        stop = min(start + chunk if parts else PROBE, count)
        maxima = _score_chunk(rounded, centers[start:stop], scores, norms[start:stop])
        if not (norms[start:stop] - 1).abs().max() <= NORM_TOLERANCE:
            return None
        parts.append(_best_of_chunk(scores, maxima, m, start))
        if not start and not _separates(parts[0], k, bound):
            return None
    rows, values, rests = (torch.cat(tensors, dim=1) for tensors in zip(*parts, strict=True))
    values, order = values.topk(m, dim=1)
    return Candidates(rows.gather(1, order), values, torch.maximum(rests.amax(dim=1, keepdim=True), values[:, -1:]))


def _score_chunk(rounded: Tensor, centers: Tensor, scores: Tensor, norms: Tensor) -> Tensor:
    """Writes norms, and coarse scores of ``centers`` into the first rows of ``scores``; returns maxima of groups.

    Args:
        rounded: embeddings ``(D, B)`` bfloat16.
        centers: ``(n, D)``.
        scores: ``(at least n, B)``; rows after the n-th up to a whole group are ``-inf`` afterwards.
        norms: ``(n,)``.

    Returns:
        ``(n / GROUP, B)``, rounded up.
    """
    count = len(centers)
    padded = count + -count % GROUP
    scores[count:padded].fill_(-torch.inf)
    maxima = scores.new_empty(padded // GROUP, scores.shape[1])
    buffer = scores.new_empty(min(BLOCK, count), centers.shape[1])
    tables = centers.split(BLOCK), norms.split(BLOCK), scores[:padded].split(BLOCK), maxima.split(BLOCK // GROUP)
    for block, block_norms, block_scores, block_maxima in zip(*tables, strict=True):
        pieces = block.split(PIECE), block_norms.split(PIECE), buffer[: len(block)].split(PIECE)
        for piece, piece_norms, converted in zip(*pieces, strict=True):
            torch.linalg.vector_norm(piece, dim=1, out=piece_norms)
            converted.copy_(piece)
        torch.mm(buffer[: len(block)], rounded, out=block_scores[: len(block)])
        torch.amax(block_scores.unflatten(0, (-1, GROUP)), dim=1, out=block_maxima)
    return maxima


def _best_of_chunk(scores: Tensor, maxima: Tensor, m: int, first_row: int) -> Candidates:
    """Returns the ``m`` best of a chunk, which are members of the ``m`` groups with the largest maxima."""
    best_maxima, groups = maxima.T.contiguous().topk(min(m, len(maxima)), dim=1, sorted=False)
    rest = torch.full_like(best_maxima[:, :1], -torch.inf)
    if len(maxima) > m:
        rest = best_maxima.amin(dim=1, keepdim=True)
    members = (groups[:, :, None] * GROUP + torch.arange(GROUP)).flatten(1)  # (B, groups * GROUP)
    values, order = scores.T.gather(1, members).topk(min(m, members.shape[1]), dim=1)
    if members.shape[1] > m:
        rest = torch.maximum(rest, values[:, -1:])
    return Candidates(members.gather(1, order) + first_row, values.float(), rest.float())


def _separates(candidates: Candidates, k: int, bound: Tensor) -> bool:
    """Whether the k-th best of at least half of the embeddings is well above all that are not candidates."""
    return bool((candidates.scores[:, k - 1, None] > candidates.rest + 2 * bound).float().mean() >= 0.5)
