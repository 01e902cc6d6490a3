"""Checks of a loss's settings and inputs; each error is one line that names the value, what was expected and a fix."""

import math
from numbers import Integral, Real

import torch
from torch import Tensor

from hgsl.common.errors import InputError, unknown
from hgsl.losses.scoring.similarity import NORM_RANGE, SIMILARITIES

HARD_SETS = ("all", "negatives")
ALPHA_RANGE = (1e-6, 1e6)  # within it, loss and gradients stay finite in float32


def check_integer(name: str, value: object, minimum: int, otherwise: str | None = None) -> None:
    """Checks for an integer of at least ``minimum``; None passes if ``otherwise`` describes what it means.

    Raises:
        InputError: It is not; True, False and floats such as 2.0 do not count as integers.
    """
    if value is None and otherwise:
        return
    if not isinstance(value, Integral) or isinstance(value, bool) or int(value) < minimum:
        alternative = f", or {otherwise}" if otherwise else ""
        raise InputError(f"{name} is {value!r}: expected an integer of at least {minimum}{alternative}")


def check_number(name: str, value: object) -> None:
    """Checks for a number, or a tensor of one number."""
    if not isinstance(value, (Real, Tensor)) or (isinstance(value, Tensor) and value.numel() != 1):
        shown = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
        raise InputError(f"{name} is {shown}: expected a number")


def hard_set_size(top_k: int | None, num_classes: int, hard_set: str) -> int:
    """Returns K for ``top_k``; None is every class.

    Raises:
        InputError: ``hard_set`` is unknown, or ``top_k`` is not an integer from 1 to the number of candidate classes.
    """
    if hard_set not in HARD_SETS:
        raise unknown("hard_set", hard_set, HARD_SETS)
    largest = num_classes if hard_set == "all" else num_classes - 1
    if top_k is None:
        return largest
    if not isinstance(top_k, Integral) or isinstance(top_k, bool) or not 1 <= top_k <= largest:
        raise InputError(
            f"top_k is {top_k!r}: with {num_classes} classes and hard_set {hard_set!r} use 1 to {largest}, "
            "or None for all of them"
        )
    return top_k


def check_settings(
    margin: float, similarity: str, chunk_size: int | None, decorrelation: float, both_sides: float
) -> None:
    """Checks that the similarity is known, margin and weights are finite and not negative, and chunks have rows."""
    if similarity not in SIMILARITIES:
        raise unknown("similarity", similarity, SIMILARITIES)
    examples = {"margin": (margin, 0.1), "decorrelation": (decorrelation, 0.1), "both_sides": (both_sides, 1)}
    for name, (value, example) in examples.items():
        check_number(name, value)
        if not 0 <= value < float("inf"):
            raise InputError(f"{name} is {value}: use 0 (none) or a positive number such as {example}")
    check_integer("chunk_size", chunk_size, 1, "None to have it chosen")


def check_batch(embeddings: Tensor, labels: Tensor, embedding_size: int, weights: Tensor | None = None) -> None:
    """Checks for floating-point ``(B, embedding_size)``, int64 labels ``(B,)`` and weights ``(B,)``, B at least 1."""
    check_embeddings(embeddings, embedding_size)
    count = len(embeddings)
    _check_tensor("labels", labels)
    if labels.dtype != torch.int64 or labels.shape != (count,):
        raise InputError(
            f"labels are {labels.dtype} of shape {tuple(labels.shape)}: "
            f"expected int64 of shape ({count},), one per embedding"
        )
    if weights is not None and (weights.shape != (count,) or weights.is_complex()):
        raise InputError(f"weights have shape {tuple(weights.shape)}: expected ({count},), one per embedding")
    if not count:
        raise InputError("the batch is empty: the loss needs at least one embedding")


def check_embeddings(embeddings: Tensor, embedding_size: int) -> None:
    """Checks that embeddings are floating point of shape ``(B, embedding_size)``."""
    _check_tensor("embeddings", embeddings)
    if embeddings.ndim != 2 or embeddings.shape[1] != embedding_size or not embeddings.is_floating_point():
        raise InputError(
            f"embeddings are {embeddings.dtype} of shape {tuple(embeddings.shape)}: "
            f"expected floating point (batch, {embedding_size}), the dimension of the class centers"
        )


def check_center_shape(centers: Tensor) -> None:
    """Checks that centers are floating point of shape ``(C, D)``, with C and D at least 1."""
    if centers.ndim != 2 or not centers.numel() or not centers.is_floating_point():
        raise InputError(
            f"centers are {centers.dtype} of shape {tuple(centers.shape)}: "
            "expected floating point (classes, dimension), with at least one of each"
        )


def check_values(
    embeddings: Tensor,
    labels: Tensor,
    num_classes: int,
    alpha: float | Tensor,
    centers: Tensor | None = None,
    norms: Tensor | None = None,
) -> None:
    """Checks that labels are in range, values are finite, and alpha is in ``ALPHA_RANGE``.

    All extremes are copied to the CPU in one transfer, so that a GPU is synchronized once. Skipped under
    ``torch.compile``.

    Args:
        embeddings: ``(B, D)``.
        labels: ``(B,)``.
        num_classes: C.
        alpha: softness.
        centers: ``(C, D)``, checked row by row only if ``norms`` are outside ``NORM_RANGE``.
        norms: their smallest and largest norm ``(2,)``.
    """
    if torch.compiler.is_compiling():
        return
    wide = torch.float32 if labels.device.type == "mps" else torch.float64
    softness = torch.as_tensor(alpha, device=labels.device)
    extremes = (*labels.aminmax(), *embeddings.aminmax(), softness)  # NaN if any value is
    values = [value.detach().to(wide) for value in (*extremes, *(() if norms is None else norms))]
    lowest, highest, low, high, softness, *center_norms = torch.stack(values).tolist()
    if lowest < 0 or highest >= num_classes:
        wrong = labels[(labels < 0) | (labels >= num_classes)].unique().tolist()
        raise InputError(
            f"labels {first_five(wrong)} are out of range: there are {num_classes} classes, 0 to {num_classes - 1}"
        )
    if not math.isfinite(low + high):
        rows = (~embeddings.isfinite().all(dim=1)).nonzero().flatten().tolist()
        raise InputError(
            f"embeddings hold NaN or infinity in row {first_five(rows)}: the network has diverged; "
            "lower its learning rate"
        )
    if not 0.999999 * ALPHA_RANGE[0] <= softness <= 1.000001 * ALPHA_RANGE[1]:  # with a tolerance for float32
        raise InputError(
            f"alpha is {softness:g}: it must lie in [{ALPHA_RANGE[0]:g}, {ALPHA_RANGE[1]:g}]; "
            "start higher, lower its learning rate, or fix it with learnable_scale=False"
        )
    if centers is not None and not usual_norms(center_norms):
        check_centers(centers)


def usual_norms(norms: list[float]) -> bool:
    """Whether the smallest and the largest norm lie within ``NORM_RANGE``."""
    return NORM_RANGE[0] < norms[0] and norms[1] < NORM_RANGE[1]


def check_centers(centers: Tensor, first_class: int = 0) -> None:
    """Checks that centers are finite, and zero or of a norm in ``NORM_RANGE``.

    Args:
        centers: ``(C, D)``.
        first_class: the class of the first row.
    """
    norms = torch.linalg.vector_norm(centers.detach(), dim=1, dtype=torch.promote_types(centers.dtype, torch.float32))
    is_zero = (centers == 0).all(dim=1)
    wrong = ~(is_zero | ((norms > NORM_RANGE[0]) & (norms < NORM_RANGE[1])))
    if wrong.any():
        rows = (wrong.nonzero().flatten() + first_class).tolist()
        raise InputError(
            f"centers are not finite, or of a norm outside {NORM_RANGE[0]:g} to {NORM_RANGE[1]:g}, "
            f"in row {first_five(rows)}: if training has diverged, lower the learning rate of the centers; "
            "otherwise rescale the given centers"
        )


def first_five(values: list[int]) -> str:
    """Returns the first five of ``values``, and how many more there are.

    >>> first_five([1, 2, 3, 4, 5, 6, 7])
    '1, 2, 3, 4, 5 and 2 more'
    """
    return ", ".join(map(str, values[:5])) + (f" and {len(values) - 5} more" if len(values) > 5 else "")


def _check_tensor(name: str, values: object) -> None:
    if not isinstance(values, Tensor):
        raise InputError(f"{name}: expected a tensor, found {type(values).__name__}: convert with torch.as_tensor")
