"""The centers nearest to each embedding, found in chunks so that no batch-by-classes matrix is ever held."""

import torch
import torch.nn.functional as F
from torch import Tensor

from hgsl.losses.gathered import gathered_similarity
from hgsl.losses.similarity import divisor, matrix_similarity, unit

# A hard set below a sixteenth of the classes is searched and gathered; a larger one is cheaper as a whole matrix.
GATHER_BELOW = 1 / 16
# Rows searched at a time. On a CPU the chunk and its scores should stay in cache; a GPU wants large products.
CPU_CHUNK, GPU_CHUNK = 8192, 65536
GROUP = 16  # rows whose largest score is taken first


def candidates(
    x: Tensor,
    centers: Tensor,
    labels: Tensor,
    k: int,
    drawn: Tensor,
    similarity: str,
    chunk_size: int | None = None,
    sparse_grad: bool = False,
    unit_centers: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Scores the true center of each embedding and at least the ``k`` nearest others.

    Few classes, or ``k`` near their number: every pair is scored. Otherwise, or with a ``chunk_size``, the nearest are
    found without gradient, and loss and gradient come from the ``k + 1`` gathered centers alone: memory beyond the
    inputs is ``O(B (chunk + k D))``.

    Args:
        x: unit embeddings ``(B, D)``.
        centers: ``(C, D)``, of any norm, C at least 1.
        labels: ``(B,)``; one outside ``[0, C)`` belongs to a class that is not among these centers.
        k: how many of the other centers are needed.
        drawn: ``(m,)`` int64, further centers to hand out.
        similarity: ``"euclidean"`` or ``"cosine"``.
        chunk_size: centers searched at a time.
        sparse_grad: whether the gradient of ``centers`` is sparse: only the rows used here.
        unit_centers: promises that ``centers`` have norm 1, which spares the search their norms.

    Returns:
        Similarities ``(B, 1 + n)``, the true center's first; a mask of the same shape, True where an entry does not
        count (the true center among the others, or first in a row that has none); the drawn centers ``(m, D)`` at
        norm 1.
    """
    count = len(centers)
    target = labels[:, None]
    true_row = target.clamp(0, count - 1)
    if chunk_size is None and k + 1 > GATHER_BELOW * count:
        rows = torch.arange(count, device=x.device)
        w = unit((F.embedding(rows, centers, sparse=True) if sparse_grad else centers).to(x.dtype))
        scores = matrix_similarity(x, w, similarity)  # (B, C)
        scores, vectors = torch.cat([scores.gather(1, true_row), scores], dim=1), w[drawn]
    else:
        chunk = chunk_size or (CPU_CHUNK if x.device.type == "cpu" else GPU_CHUNK)
        rows = nearest_centers(x.detach(), centers.detach(), min(k + 1, count), chunk, unit_centers)
        true_last = (rows == target).byte().argsort(dim=1, stable=True)
        rows = rows.gather(1, true_last[:, :k])  # (B, k)
        compared = torch.cat([true_row, rows], dim=1)
        scores, vectors = gathered_similarity(x, centers, compared, drawn, similarity, sparse_grad)
    return scores, torch.cat([true_row != target, rows == target], dim=1), vectors


def largest(values: Tensor, k: int) -> Tensor:
    """Returns the ``k`` largest of each row of ``(B, n)``, or all of them if there are fewer."""
    return values if values.shape[1] <= k else values.topk(k, dim=1).values


@torch.library.custom_op("hgsl::nearest_centers", mutates_args=())  # one opaque step to torch.compile: no unrolled loop
def nearest_centers(x: Tensor, centers: Tensor, k: int, chunk_size: int, unit_centers: bool) -> Tensor:
    """Returns the rows ``(B, k)`` of the centers ``(C, D)`` with the largest cosine to ``x`` ``(B, D)``, best first.

    For unit ``x`` these are the nearest unit centers too. One chunk of centers is multiplied at a time, and the best of
    it merged into a running top k; ``unit_centers`` promises that the centers need not be divided by their norms.
    """
    best = x.new_empty(0, len(x))
    rows = torch.empty(0, len(x), dtype=torch.int64, device=x.device)
    length = min(chunk_size, len(centers))
    scores = x.new_empty(length + -length % GROUP, len(x))
    for start in range(0, len(centers), chunk_size):
        block = centers[start : start + chunk_size].to(x.dtype)
        found = torch.mm(block, x.T, out=scores[: len(block)])  # (chunk, B)
        if not unit_centers:
            found.div_(divisor(block))
        scores[len(block) :].fill_(-torch.inf)
        values, places = _largest_rows(scores, min(k, len(block)))
        best, rows = torch.cat([best, values]), torch.cat([rows, places + start])
        best, order = best.topk(min(k, len(best)), dim=0)
        rows = rows.gather(0, order)
    return rows.T.contiguous()


@nearest_centers.register_fake
def _(x: Tensor, centers: Tensor, k: int, chunk_size: int, unit_centers: bool) -> Tensor:
    return torch.empty(len(x), k, dtype=torch.int64, device=x.device)


def _largest_rows(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Returns the ``k`` largest of each column of ``(n, B)`` and their rows, both ``(k, B)``; GROUP divides n.

    They lie in the ``k`` groups of rows that have the largest maxima, and maxima are far cheaper than a top k.
    """
    groups = scores.unflatten(0, (-1, GROUP))  # (n / GROUP, GROUP, B)
    if len(groups) < 2 * k:
        found = scores.topk(k, dim=0)
        return found.values, found.indices
    nearest = groups.amax(dim=1).topk(k, dim=0).indices  # (k, B)
    members = groups.gather(0, nearest[:, None].expand(-1, GROUP, -1)).flatten(0, 1)
    values, places = members.topk(k, dim=0)
    return values, nearest.gather(0, places // GROUP) * GROUP + places % GROUP
