"""Category sampler: batches of classes that look alike, since they belong to one coarser category."""

import numpy as np

from hgsl.common.errors import InputError
from hgsl.data.samplers.m_per_class import classes_per_batch, deal_classes
from hgsl.data.samplers.rows import Rows, rows_by_class


def category(labels: Rows, batch_size: int, per_class: int, rng: np.random.Generator, categories: Rows | None) -> Rows:
    """Batches of P = batch_size / per_class different classes of one category with ``per_class`` rows each.

    Categories with fewer than P classes are joined, in their order, until they have P, so that such a batch is from a
    few categories; what is left over joins the last of them. The batches of each category, or of several joined ones,
    are those of the sampler ``m_per_class``. Classes without a category are one category together.

    Args:
        labels: (N,) class of each row.
        batch_size: Rows per batch, a multiple of ``per_class``.
        per_class: Rows of one class in a batch.
        rng: Source of the shuffle.
        categories: (C,) category of each class, negative for none.

    Returns:
        (B, batch_size) rows.

    Raises:
        InputError: There are no categories, or batch size and classes do not fit.
    """
    if categories is None or not (categories >= 0).any():
        raise InputError(
            "the sampler category needs the category of each class: add a column category to the table, name another "
            "column by data.options.group_column, or set data.sampler m_per_class"
        )
    classes = classes_per_batch(labels, batch_size, per_class)
    members = rows_by_class(labels)
    blocks = _blocks(np.maximum(categories, -1), classes)
    plans = [deal_classes([members[c] for c in block], classes, per_class, rng) for block in blocks]
    return rng.permutation(np.concatenate(plans))


def _blocks(categories: Rows, classes: int) -> list[Rows]:
    """Returns the classes of each category, small categories joined so that a block has at least ``classes`` of them.

    The blocks depend on the categories alone, so that every epoch has the same number of batches.
    """
    large: list[Rows] = []
    joined: list[Rows] = []
    small = np.zeros(0, np.int64)
    for number in np.unique(categories):
        block = np.flatnonzero(categories == number)
        if len(block) >= classes:
            large.append(block)
            continue
        small = np.concatenate([small, block])
        if len(small) >= classes:
            joined.append(small)
            small = small[:0]
    blocks = large + joined
    blocks[-1] = np.concatenate([blocks[-1], small])
    return blocks
