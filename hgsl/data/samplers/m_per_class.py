"""M-per-class sampler: batches of a few classes with the same number of rows each."""

import numpy as np

from hgsl.common.errors import InputError
from hgsl.data.samplers.rows import Rows, rows_by_class


def m_per_class(
    labels: Rows, batch_size: int, per_class: int, rng: np.random.Generator, categories: Rows | None
) -> Rows:
    """Batches of P = batch_size / per_class different classes with ``per_class`` rows each; see :func:`deal_classes`.

    Args:
        labels: (N,) class of each row.
        batch_size: Rows per batch, a multiple of ``per_class``.
        per_class: Rows of one class in a batch.
        rng: Source of the shuffle.
        categories: Ignored.

    Returns:
        (B, batch_size) rows.

    Raises:
        InputError: ``batch_size`` is not a multiple of ``per_class``, or needs more classes than there are.
    """
    classes = classes_per_batch(labels, batch_size, per_class)
    return deal_classes(rows_by_class(labels), classes, per_class, rng)


def classes_per_batch(labels: Rows, batch_size: int, per_class: int) -> int:
    """Returns P, the number of classes in a batch; raises an InputError unless it is a whole number of at most C."""
    total = len(np.unique(labels))
    if per_class < 1 or batch_size % per_class or batch_size // per_class > total:
        raise InputError(
            f"a batch of {batch_size} with {per_class} images per class needs {batch_size / max(per_class, 1):g} "
            f"classes, expected a whole number of at most {total}: change train.batch_size or data.per_class"
        )
    return batch_size // per_class


def deal_classes(members: list[Rows], classes: int, per_class: int, rng: np.random.Generator) -> Rows:
    """Batches of ``classes`` different classes with ``per_class`` rows each.

    The shuffled rows of a class are cut into groups of ``per_class``; no row is in two groups, and the remainder is
    left out of this epoch. A class with fewer than ``per_class`` rows repeats them to fill its only group. The number
    of batches B is the largest for which sum_c min(groups_c, B) >= B * P. Groups are assigned class by class, the g-th
    to batch g modulo B, so that no class occurs twice in a batch.

    Args:
        members: The rows of each class.
        classes: P, at most the number of classes.
        per_class: Rows of one class in a batch.
        rng: Source of the shuffle.

    Returns:
        (B, classes * per_class) rows.
    """
    groups = []  # one (groups_c, per_class) array per class
    for rows in members:
        shuffled = rng.permutation(rows)
        count = max(len(rows) // per_class, 1)
        groups.append(np.resize(shuffled, count * per_class).reshape(count, per_class))
    batches = _most_batches(np.array([len(group) for group in groups]), classes)
    order = rng.permutation(len(groups))
    dealt = np.concatenate([groups[c][:batches] for c in order])[: batches * classes]
    plan = dealt.reshape(classes, batches, per_class).swapaxes(0, 1).reshape(batches, classes * per_class)
    return rng.permutation(plan)


def _most_batches(groups: Rows, classes: int) -> int:
    """The largest B with sum_c min(groups_c, B) >= B * classes: enough groups, and no class twice in a batch."""
    low, high = 0, int(groups.sum()) // classes
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if np.minimum(groups, middle).sum() >= middle * classes else (low, middle - 1)
    return low
