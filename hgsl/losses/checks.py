"""What a loss refuses: each check is one line that names the value found and the way out."""

import math

import torch
from torch import Tensor

from hgsl.common.errors import InputError, unknown
from hgsl.losses.similarity import SIMILARITIES

HARD_SETS = ("all", "negatives")
ALPHA_RANGE = (1e-6, 1e6)  # within it, loss and gradients stay finite in float32


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
    return top_k


def check_settings(margin: float, similarity: str, chunk_size: int | None) -> None:
    """Refuses an unknown similarity, a margin that is negative or not finite, and a chunk of no rows."""
    if similarity not in SIMILARITIES:
        raise unknown("similarity", similarity, SIMILARITIES)
    if not 0 <= margin < float("inf"):
        raise InputError(f"margin is {margin}: use 0 (none) or a positive number such as 0.1")
    if chunk_size is not None and chunk_size < 1:
        raise InputError(f"chunk_size is {chunk_size}: use a positive number of centers, or None to have it chosen")


def check_shapes(embeddings: Tensor, labels: Tensor, embedding_size: int) -> None:
    """Refuses what is not a floating ``(B, embedding_size)`` and an integer ``(B,)`` with B at least 1."""
    if embeddings.ndim != 2 or embeddings.shape[1] != embedding_size or not embeddings.is_floating_point():
        raise InputError(
            f"embeddings are {embeddings.dtype} of shape {tuple(embeddings.shape)}: "
            f"expected floating point (batch, {embedding_size}), the dimension of the class centers"
        )
    if labels.dtype != torch.int64 or labels.ndim != 1 or len(labels) != len(embeddings):
        raise InputError(
            f"labels are {labels.dtype} of shape {tuple(labels.shape)}: "
            f"expected int64 of shape ({len(embeddings)},), one an embedding"
        )
    if not len(embeddings):
        raise InputError("the batch is empty: the loss needs at least one embedding")


def check_values(embeddings: Tensor, labels: Tensor, num_classes: int, alpha: float | Tensor) -> None:
    """Refuses labels out of range, embeddings that are not finite, and an alpha outside ``ALPHA_RANGE``.

    All is looked at in one transfer, so a GPU waits once. Nothing is done while ``torch.compile`` traces.
    """
    if torch.compiler.is_compiling():
        return
    wide = torch.float32 if labels.device.type == "mps" else torch.float64
    softness = torch.as_tensor(alpha, device=labels.device)
    seen = (*labels.aminmax(), *embeddings.aminmax(), softness)  # the extremes are NaN if any value is
    lowest, highest, low, high, softness = torch.stack([value.detach().to(wide) for value in seen]).tolist()
    if lowest < 0 or highest >= num_classes:
        found = labels[(labels < 0) | (labels >= num_classes)].unique().tolist()
        raise InputError(
            f"labels {_few(found)} are out of range: there are {num_classes} classes, 0 to {num_classes - 1}"
        )
    if not math.isfinite(low + high):
        rows = (~embeddings.isfinite().all(dim=1)).nonzero().flatten().tolist()
        raise InputError(
            f"embeddings hold NaN or infinity in row {_few(rows)}: the network has diverged; lower its rate"
        )
    if not 0.999999 * ALPHA_RANGE[0] <= softness <= 1.000001 * ALPHA_RANGE[1]:  # float32 rounds the ends
        raise InputError(
            f"alpha is {softness:g}: it must lie in [{ALPHA_RANGE[0]:g}, {ALPHA_RANGE[1]:g}]; "
            "start higher, lower its learning rate, or fix it with learnable_scale=False"
        )


def _few(values: list[int]) -> str:
    return ", ".join(map(str, values[:5])) + (f" and {len(values) - 5} more" if len(values) > 5 else "")
