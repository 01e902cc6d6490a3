"""Conversion of labels and groups: integers of any width, or class names as text."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hgsl.common.errors import InputError
from hgsl.evaluation.knn.vectors import Array


def encode_labels(labels: Array, gallery_labels: Array | None) -> tuple[Array, Array | None, tuple[str, ...] | None]:
    """Returns the labels of queries and gallery as integers, and the class names where they were text.

    Text is numbered in sorted order over both; integers stay as they are.

    Raises:
        InputError: One of the two is text and the other is not.

    >>> encode_labels(["owl", "hen", "owl"], None)
    (array([1, 0, 1]), None, ('hen', 'owl'))
    """
    sides = [as_array(values) for values in (labels, gallery_labels) if values is not None]
    text = [_is_text(values) for values in sides]
    if not any(text):
        return labels, gallery_labels, None
    if not all(text):
        raise InputError("labels and gallery_labels: one holds text and the other numbers, give both in one form")
    names, codes = np.unique(np.concatenate([_names(values).ravel() for values in sides]), return_inverse=True)
    first = codes[: sides[0].size].reshape(sides[0].shape)
    second = None if gallery_labels is None else codes[sides[0].size :].reshape(sides[1].shape)
    return first, second, tuple(names.tolist())


def codes_of(labels: Array, class_names: tuple[str, ...] | None) -> Array:
    """Returns labels of further images in the integer encoding of a task.

    Args:
        labels: Text if the task's labels were text, else integers.
        class_names: Names of the task's classes; other names are numbered after them.

    Raises:
        InputError: The labels are text and those of the task are not, or the other way round.
    """
    values = as_array(labels)
    if _is_text(values) != (class_names is not None):
        raise InputError(
            "validation labels and gallery labels: one holds text and the other numbers, give both in one form"
        )
    if class_names is None:
        return labels
    known = {name: code for code, name in enumerate(class_names)}
    for name in np.unique(_names(values)).tolist():
        known.setdefault(name, len(known))
    return np.array([known[str(name)] for name in values], dtype=np.int64)


def as_array(values: Array) -> NDArray[Any]:
    """Returns a tensor, a list or an array as a NumPy array."""
    return values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)


def signed(groups: Array) -> NDArray[Any]:
    """Returns group numbers with unsigned 64-bit ones reinterpreted as signed: only their equality is used.

    >>> signed([2**64 - 2, -7])
    array([-2, -7])
    """
    values = as_array(groups)
    if values.dtype.kind in "fO" and isinstance(groups, list | tuple):  # NumPy has no dtype for all of [2**63, -7]
        exact = np.array(groups, dtype=object)
        if all(isinstance(number, int | np.integer) and -(2**63) <= number < 2**64 for number in exact.flat):
            return ((exact + 2**63) % 2**64 - 2**63).astype(np.int64)
    return values.view(np.int64) if values.dtype == np.uint64 else values


def _names(values: NDArray[Any]) -> NDArray[np.str_]:
    """Returns text in an array of one width, which NumPy does not make of a StringDType directly."""
    return (values.astype(object) if values.dtype.kind == "T" else values).astype(str)


def _is_text(values: NDArray[Any]) -> bool:
    if values.dtype.kind == "O":
        return values.size > 0 and all(isinstance(value, str) for value in values.flat)
    return values.dtype.kind in "UT"  # T is StringDType
