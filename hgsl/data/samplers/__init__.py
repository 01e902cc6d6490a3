"""Samplers: the batches of one epoch, planned as rows of a data set.

A new sampler is one file and one line in ``SAMPLERS``: a function ``(labels, batch_size, per_class, rng, categories) ->
plan`` with labels (N,) int64, categories (C,) int64 or None, and a plan (batches, batch_size) of rows, 0..N-1. Training
divides each batch among its processes, so samplers do not depend on their number.
"""

from __future__ import annotations  # so that help() shows the names of long types

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from hgsl.common.errors import InputError, unknown
from hgsl.common.whole_numbers import check_whole_number
from hgsl.data.samplers.category import category
from hgsl.data.samplers.class_balanced import class_balanced
from hgsl.data.samplers.m_per_class import m_per_class
from hgsl.data.samplers.random import random
from hgsl.data.samplers.rows import Rows

SAMPLERS: dict[str, Callable[[Rows, int, int, np.random.Generator, Rows | None], Rows]] = {
    "category": category,
    "class_balanced": class_balanced,
    "m_per_class": m_per_class,
    "random": random,
}


def epoch_plan(
    name: str,
    labels: ArrayLike,
    batch_size: int,
    *,
    per_class: int = 4,
    seed: int = 0,
    epoch: int = 0,
    categories: ArrayLike | None = None,
) -> Rows:
    """The batches of one epoch: (batches, batch_size) rows of the data set.

    The plan depends on the arguments alone, so that a run resumed within an epoch continues with the same batches.
    Every epoch has another order and the same number of batches.

    Args:
        name: One of ``SAMPLERS``.
        labels: (N,) class of each row: integers or class names.
        batch_size: Rows per batch.
        per_class: Rows of one class in a batch, for "m_per_class" and "category".
        seed: Seed of the run.
        epoch: Number of the epoch, from 0.
        categories: (C,) integers, the category of each class in the order of the labels, negative for none, which the
            sampler "category" needs.

    Raises:
        InputError: The sampler is unknown, or cannot fill one batch from these labels.
    """
    if name not in SAMPLERS:
        raise unknown("sampler", name, SAMPLERS)
    check_whole_number("batch_size", batch_size, 1)
    check_whole_number("per_class", per_class, 1)
    check_whole_number("seed", seed, 0)
    check_whole_number("epoch", epoch, 0)
    classes = np.asarray(labels)
    if classes.ndim != 1:
        raise InputError(f"labels have the shape {classes.shape}: expected (N,), the class of each row")
    classes = np.unique(classes, return_inverse=True)[1].astype(np.int64)
    if batch_size > len(classes):
        raise InputError(
            f"{len(classes)} images cannot fill a batch of {batch_size}: set train.batch_size from 1 to {len(classes)}"
        )
    coarser = None if categories is None else np.asarray(categories)
    if coarser is not None and (coarser.shape != (classes.max() + 1,) or coarser.dtype.kind not in "iu"):
        raise InputError(
            f"categories are {coarser.dtype} of the shape {coarser.shape}: expected one integer for each of "
            f"{classes.max() + 1} classes"
        )
    plan = SAMPLERS[name](
        classes,
        batch_size,
        per_class,
        np.random.default_rng([seed, epoch]),
        None if coarser is None else coarser.astype(np.int64),
    )
    if not len(plan):
        raise InputError(
            f"sampler {name} fills no batch of {batch_size} with {per_class} images per class, as the classes are too "
            "uneven: lower train.batch_size"
        )
    return plan
