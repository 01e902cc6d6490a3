"""Conditions evaluated over columns of values with NumPy."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hgsl.search.where.nodes import Both, Comparison, Condition, Not

Mask = NDArray[np.bool_]

COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "==": np.equal, "!=": np.not_equal, "<": np.less, "<=": np.less_equal, ">": np.greater, ">=": np.greater_equal,
}  # fmt: skip


def mask_of(condition: Condition, columns: Mapping[str, NDArray[Any]]) -> Mask:
    """Returns (N,): whether each image satisfies the condition.

    Args:
        condition: From :func:`hgsl.search.where.parser.parse`.
        columns: Field -> values (N,): texts as objects, empty where missing; numbers as float64, NaN where missing.
    """
    match condition:
        case Not(operand):
            return ~mask_of(operand, columns)
        case Both(left, right, either):
            first, second = mask_of(left, columns), mask_of(right, columns)
            return first | second if either else first & second
        case Comparison(field, "in" | "not in" as operator, values):
            return _is_in(columns[field], values) ^ (operator == "not in")
        case Comparison(field, operator, (value,)):
            return np.asarray(COMPARE[operator](columns[field], value), dtype=bool)
    raise TypeError(f"no condition: {condition!r}")


def _is_in(column: NDArray[Any], values: tuple[Any, ...]) -> Mask:
    if column.dtype != object:
        return np.isin(column, np.array(values, dtype=np.float64))
    allowed = set(values)
    return np.fromiter((value in allowed for value in column), dtype=bool, count=len(column))
