"""Conditions as a tree of comparisons, and the fields that they may use.

A missing text is the empty string. A missing number equals no number: of the comparisons with it, only ``!=`` and
``not in`` hold. So every condition is true or false of every image, in every store.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

FieldType = Literal["text", "number"]
Scalar = str | float
Operator = Literal["==", "!=", "<", "<=", ">", ">=", "in", "not in"]

MAX_NUMBER = 1e300  # numbers are smaller in magnitude, so that a store can mark missing ones
FIELDS: dict[str, FieldType] = {"path": "text", "label": "text", "size": "number", "time": "number"}


@dataclass(frozen=True)
class Comparison:
    """A field compared with a value, or with a list of values for ``in`` and ``not in``."""

    field: str
    operator: Operator
    values: tuple[Scalar, ...]


@dataclass(frozen=True)
class Not:
    """True where its operand is false."""

    operand: "Condition"


@dataclass(frozen=True)
class Both:
    """The conjunction, or with ``either`` the disjunction, of two conditions."""

    left: "Condition"
    right: "Condition"
    either: bool = False


Condition = Comparison | Not | Both


def fields_of(columns: Mapping[str, FieldType]) -> dict[str, FieldType]:
    """The fields of an index with these table columns: ``size`` is in bytes, ``time`` in seconds since 1970."""
    return {**FIELDS, **columns}


def with_labels(labels: Sequence[str] | None, where: Condition | None) -> Condition | None:
    """The condition for images of one of these labels (None: of all images) that also satisfy ``where``."""
    if not labels:
        return where
    is_labeled = Comparison("label", "in", tuple(dict.fromkeys(labels)))
    return is_labeled if where is None else Both(is_labeled, where)
