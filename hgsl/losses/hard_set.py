"""The hard set: the search for its candidates, their similarities, and the choice of the K hardest."""

import torch
import torch.nn.functional as F
from torch import Tensor

from hgsl.losses.scoring.gathered import gathered_similarity
from hgsl.losses.scoring.search import nearest_centers
from hgsl.losses.scoring.similarity import matrix_similarity, unit

# A hard set below 1/16 of the classes is searched and gathered; for a larger one the full matrix is cheaper.
GATHER_BELOW = 1 / 16
# A GPU waits for launches, not for arithmetic: up to so many classes, scoring every pair takes fewer of them.
DENSE_UP_TO = {"cuda": 16384}
# Centers searched at a time. On a CPU the chunk and its scores should stay in cache; a GPU needs large products.
CPU_CHUNK, GPU_CHUNK = 8192, 65536


def is_searched(k: int | None, count: int) -> bool:
    """Whether a hard set of ``k`` of ``count`` classes is small enough to be searched; None is every class."""
    return k is not None and k + 1 <= GATHER_BELOW * count


def nearest_classes(
    x: Tensor, centers: Tensor, labels: Tensor, k: int, chunk_size: int | None, dense_up_to: int = 0
) -> tuple[Tensor | None, Tensor]:
    """Finds the ``k`` classes nearest to each embedding other than its own, without gradient.

    With few classes, or ``k`` near their number, scoring every pair is cheaper, and no search is done.

    Args:
        x: unit embeddings ``(B, D)``.
        centers: ``(C, D)``, of any norm, C at least 1.
        labels: ``(B,)``; one outside ``[0, C)`` belongs to a class that is not among these centers.
        k: how many other classes are needed.
        chunk_size: centers searched at a time; a number forces the search.
        dense_up_to: number of classes up to which every pair is scored, whatever ``k`` is.

    Returns:
        The classes ``(B, k)`` int64 (the true class may be among them, where fewer than ``k`` others exist) with the
        smallest and the largest norm of all centers ``(2,)``; or None for every class, with all norms ``(C,)``.
    """
    x, centers, count = x.detach(), centers.detach(), len(centers)
    if chunk_size is None and (not is_searched(k, count) or count <= dense_up_to):
        return None, torch.linalg.vector_norm(centers, dim=1, dtype=x.dtype)
    chunk = chunk_size or (CPU_CHUNK if x.device.type == "cpu" else GPU_CHUNK)
    method = "fastest" if chunk_size is None else "exact"
    nearest, norms = nearest_centers(x, centers, min(k + 1, count), chunk, method)
    true_last = (nearest == labels[:, None]).byte().argsort(dim=1, stable=True)
    return nearest.gather(1, true_last[:, :k]), norms


def score_classes(
    x: Tensor,
    centers: Tensor,
    labels: Tensor,
    nearest: Tensor | None,
    sampled: Tensor,
    similarity: str,
    sparse_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Scores each embedding against the center of its class and the ``nearest`` centers, or all centers.

    The ``sampled`` centers, which the regularizer compares with each other, are returned as well, so that a step has a
    single lookup of centers and thus a single gradient tensor.

    Args:
        x: unit embeddings ``(B, D)``.
        centers: ``(C, D)``, of any norm.
        labels: ``(B,)`` int64; one outside ``[0, C)`` belongs to a class that is not among these centers.
        nearest: ``(B, n)`` int64, or None for every class.
        sampled: ``(m,)`` int64.
        similarity: ``"euclidean"`` or ``"cosine"``.
        sparse_grad: whether the gradient of ``centers`` is a sparse tensor, with only the rows used here.

    Returns:
        Similarities ``(B, 1 + n)``, that of the true class first; a mask of the same shape, True for
        entries to exclude (the second occurrence of the true class, and column 0 if the center of the true class is not
        among ``centers``); the sampled centers ``(m, D)`` at norm 1.
    """
    if nearest is None:
        rows = torch.arange(len(centers), device=x.device)
        w = unit((F.embedding(rows, centers, sparse=True) if sparse_grad else centers).to(x.dtype))
        scores, excluded = true_class_first(matrix_similarity(x, w, similarity), labels)
        return scores, excluded, w[sampled]
    target, target_row = _target_rows(labels, len(centers))
    rows = torch.cat([target_row, nearest], dim=1)
    scores, sampled_centers = gathered_similarity(x, centers, rows, sampled, similarity, sparse_grad)
    return scores, torch.cat([target_row != target, nearest == target], dim=1), sampled_centers


def true_class_first(scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the similarities ``(B, C)`` to every center as :func:`score_classes` does, with their mask."""
    classes = torch.arange(scores.shape[1], device=scores.device)
    target, target_row = _target_rows(labels, scores.shape[1])
    excluded = torch.cat([target_row != target, classes == target], dim=1)
    return torch.cat([scores.gather(1, target_row), scores], dim=1), excluded


def _target_rows(labels: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Returns the labels and the nearest rows among ``count`` centers, both ``(B, 1)``."""
    target = labels[:, None]
    return target, target.clamp(0, count - 1)


def scaled(scores: Tensor, excluded: Tensor, alpha: float | Tensor, margin: float) -> Tensor:
    """Returns the logits ``z`` ``(B, 1 + n)``: the margin is subtracted in column 0, excluded entries are ``-inf``."""
    if margin:
        scores = torch.cat([scores[:, :1] - margin, scores[:, 1:]], dim=1)
    return (10 / alpha * scores).masked_fill(excluded, -torch.inf)


def class_losses(
    scores: Tensor, excluded: Tensor, alpha: float | Tensor, margin: float, k: int | None, hard_set: str
) -> Tensor:
    """Returns the losses ``(B,)`` from similarities ``(B, 1 + n)``, that of the true class first; None is every class.

    ``scores`` and ``excluded`` are those of :func:`score_classes`.
    """
    z = scaled(scores, excluded, alpha, margin)
    return hard_logits(z, k, hard_set).logsumexp(dim=1) - z[:, 0]


def hard_logits(logits: Tensor, k: int | None, hard_set: str) -> Tensor:
    """Selects the logits of the hard set from ``(B, 1 + n)`` logits, that of the true class first.

    Args:
        logits: ``(B, 1 + n)``, ``-inf`` for excluded entries.
        k: K; None takes every class.
        hard_set: ``"all"``: the K largest. ``"negatives"``: the true class, and the K largest of the others.
    """
    if k is None:
        return logits
    if hard_set == "negatives":
        return torch.cat([logits[:, :1], largest(logits[:, 1:], k)], dim=1)
    return largest(logits, k)


def largest(values: Tensor, k: int) -> Tensor:
    """Returns the ``k`` largest of each row of ``(B, n)``, or all of them if there are fewer."""
    return values if values.shape[1] <= k else values.topk(k, dim=1).values
