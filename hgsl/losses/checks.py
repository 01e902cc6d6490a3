"""Checks of a loss's settings and inputs; each error is one line that names the value, what was expected and a fix."""

from numbers import Integral, Real

import torch
from torch import Tensor

from hgsl.common.errors import InputError, unknown
from hgsl.losses.scoring.similarity import SIMILARITIES

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
HARD_SETS = ("all", "negatives")


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
    """Checks for a finite number, or a tensor of one number, which is not read; True and False are no numbers."""
    if isinstance(value, Tensor):
        is_number = value.numel() == 1 and value.dtype != torch.bool
    else:
        is_number = isinstance(value, Real) and not isinstance(value, bool)
    if not is_number:
        if isinstance(value, Tensor) and value.numel() != 1:
            raise InputError(f"{name} is a tensor of shape {tuple(value.shape)}: expected a number")
        raise InputError(f"{name} is {value!r:.80}: expected a number")
    if isinstance(value, Real) and not abs(value) < float("inf"):  # type: ignore[operator]
        raise InputError(f"{name} is {value}: expected a finite number")


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
    check_similarity(similarity)
    examples = {"margin": (margin, 0.1), "decorrelation": (decorrelation, 0.1), "both_sides": (both_sides, 1)}
    for name, (value, example) in examples.items():
        check_number(name, value)
        if not 0 <= value < float("inf"):
            raise InputError(f"{name} is {value}: use 0 (none) or a positive number such as {example}")
    check_integer("chunk_size", chunk_size, 1, "None to have it chosen")


def check_similarity(similarity: str) -> None:
    """Checks that the similarity is one of ``SIMILARITIES``."""
    if similarity not in SIMILARITIES:
        raise unknown("similarity", similarity, SIMILARITIES)


def check_batch(embeddings: Tensor, labels: Tensor, embedding_size: int, weights: Tensor | None = None) -> None:
    """Checks for floating-point ``(B, embedding_size)``, int64 labels ``(B,)`` and weights ``(B,)``, B at least 1."""
    check_embeddings(embeddings, embedding_size)
    count = len(embeddings)
    check_tensor("labels", labels)
    if labels.dtype != torch.int64 or labels.shape != (count,):
        raise InputError(
            f"labels are {labels.dtype} of shape {tuple(labels.shape)}: "
            f"expected int64 of shape ({count},), one per embedding"
        )
    if weights is not None:
        check_tensor("weights", weights)
    if weights is not None and (weights.shape != (count,) or weights.is_complex()):
        raise InputError(f"weights have shape {tuple(weights.shape)}: expected ({count},), one per embedding")
    if not count:
        raise InputError("the batch is empty: the loss needs at least one embedding")


def check_embeddings(embeddings: Tensor, embedding_size: int) -> None:
    """Checks that embeddings are floating point of shape ``(B, embedding_size)``."""
    check_tensor("embeddings", embeddings)
    if embeddings.ndim != 2 or embeddings.shape[1] != embedding_size or embeddings.dtype not in FLOATS:
        raise InputError(
            f"embeddings are {embeddings.dtype} of shape {tuple(embeddings.shape)}: "
            f"expected floating point (batch, {embedding_size}), the dimension of the class centers, in 16 bits or more"
        )


def check_center_shape(centers: Tensor) -> None:
    """Checks that centers are floating point of shape ``(C, D)``, with C and D at least 1."""
    check_tensor("centers", centers)
    if centers.ndim != 2 or not centers.numel() or centers.dtype not in FLOATS:
        raise InputError(
            f"centers are {centers.dtype} of shape {tuple(centers.shape)}: "
            "expected floating point (classes, dimension) in 16 bits or more, with at least one of each"
        )


def check_devices(**tensors: Tensor) -> None:
    """Checks that tensors, given by their names, are on one device, and that it holds values."""
    devices = [tensor.device for tensor in tensors.values()]
    if devices[0].type == "meta" or any(device != devices[0] for device in devices):
        listed = ", ".join(f"{name} on {tensor.device}" for name, tensor in tensors.items())
        raise InputError(f"the loss needs values on one device, found {listed}: move them with .to(device)")


def check_tensor(name: str, values: object) -> None:
    """Checks that ``values`` is a tensor, and not a list or an array."""
    if not isinstance(values, Tensor):
        raise InputError(f"{name}: expected a tensor, found {type(values).__name__}: convert with torch.as_tensor")
