"""Samplers: the guarantees of each, for any class sizes, and the errors."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, TensorDataset

from hgsl.common.errors import InputError
from hgsl.data.samplers import SAMPLERS, epoch_plan

SIZES = [1, 2, 3, 5, 8, 13, 21, 34]
UNEVEN = np.random.default_rng(0).permutation(np.repeat(np.arange(8), SIZES))


CATEGORIES = [0, 0, 1, 1, -1, 1, 0, 0]


@pytest.mark.parametrize("name", SAMPLERS)
def test_an_epoch_depends_on_seed_and_number_alone(name: str) -> None:
    plan = epoch_plan(name, UNEVEN, 8, seed=1, epoch=2, categories=CATEGORIES)
    np.random.seed(7)  # noqa: NPY002 - the global state must not matter
    torch.manual_seed(7)
    assert np.array_equal(epoch_plan(name, UNEVEN, 8, seed=1, epoch=2, categories=CATEGORIES), plan)
    for changed in ({"seed": 2, "epoch": 2}, {"seed": 1, "epoch": 3}):
        other = epoch_plan(name, UNEVEN, 8, **changed, categories=CATEGORIES)
        assert other.shape == plan.shape  # the schedule can count on the length
        assert not np.array_equal(other, plan)


@pytest.mark.parametrize("name", SAMPLERS)
def test_labels_may_be_a_list_any_integers_or_class_names(name: str) -> None:
    plan = epoch_plan(name, UNEVEN, 8, categories=CATEGORIES)
    names = [f"class_{label}" for label in UNEVEN]
    for labels in (UNEVEN.tolist(), UNEVEN.astype(np.int32) - 5, torch.from_numpy(UNEVEN), names, np.array(names)):
        assert np.array_equal(epoch_plan(name, labels, 8, categories=CATEGORIES), plan)


def test_random_takes_every_row_once() -> None:
    rows = epoch_plan("random", UNEVEN, 4)
    assert rows.shape == (len(UNEVEN) // 4, 4)
    assert len(np.unique(rows)) == rows.size


@settings(deadline=None)
@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=12),
    per_class=st.integers(1, 4),
    classes=st.integers(1, 6),
)
def test_m_per_class_is_exact(sizes: list[int], per_class: int, classes: int) -> None:
    labels = np.repeat(np.arange(len(sizes)), sizes)
    batch_size = per_class * classes
    groups = [max(size // per_class, 1) for size in sizes]
    most = max(b for b in range(sum(groups) + 1) if sum(min(g, b) for g in groups) >= b * classes)
    try:
        plan = epoch_plan("m_per_class", labels, batch_size, per_class=per_class)
    except InputError:
        assert classes > len(sizes) or len(labels) < batch_size or most < 1
        return
    assert plan.shape == (most, batch_size)
    for batch in plan:
        assert sorted(Counter(labels[batch].tolist()).values()) == [per_class] * classes
    for row, count in Counter(plan.ravel().tolist()).items():
        size = sizes[labels[row]]
        assert count <= -(-per_class // size) if size < per_class else count == 1


@settings(deadline=None)
@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=9), batch_size=st.integers(1, 6))
def test_class_balanced_is_balanced(sizes: list[int], batch_size: int) -> None:
    labels = np.repeat(np.arange(len(sizes)), sizes)
    if len(labels) < batch_size:
        return
    plan = epoch_plan("class_balanced", labels, batch_size)
    assert plan.shape == (len(labels) // batch_size, batch_size)
    per_class = np.bincount(labels[plan.ravel()], minlength=len(sizes))
    assert per_class.max() - per_class.min() <= 1
    per_row = np.bincount(plan.ravel(), minlength=len(labels))
    for label in range(len(sizes)):
        assert np.ptp(per_row[labels == label]) <= 1  # no row repeats before all of its class were drawn


@settings(deadline=None)
@given(sizes=st.lists(st.integers(1, 12), min_size=6, max_size=20), classes=st.integers(1, 6), seed=st.integers(0, 9))
def test_category_batches_stay_within_a_category_that_can_fill_them(sizes: list[int], classes: int, seed: int) -> None:
    labels = np.repeat(np.arange(len(sizes)), sizes)
    categories = np.random.default_rng(seed).integers(-1, 3, len(sizes))
    if (categories < 0).all() or len(labels) < 2 * classes:
        return
    plan = epoch_plan("category", labels, 2 * classes, per_class=2, categories=categories)
    counts = {category: int((categories == category).sum()) for category in (-1, 0, 1, 2)}
    last_large = max((category for category, count in counts.items() if count >= classes), default=None)
    small = sum(count for count in counts.values() if count < classes)
    for batch in plan:
        assert sorted(Counter(labels[batch].tolist()).values()) == [2] * classes
        origins = set(categories[labels[batch]].tolist())
        mixed = any(counts[category] < classes for category in origins)
        assert len(origins) == 1 or (mixed and (small >= classes or origins & {last_large}))
    covered = {category for batch in plan for category in categories[labels[batch]].tolist()}
    assert covered >= {category for category, count in counts.items() if count >= classes}
    assert np.bincount(plan.ravel()).max() <= 2  # a row is repeated only to fill the group of a class with one row


def test_small_categories_are_joined_in_their_order() -> None:
    labels, categories = np.repeat(np.arange(9), 2), np.array([0, 1, 2, 2, 2, 3, 1, 0, 4])
    plan = epoch_plan("category", labels, 6, per_class=2, categories=categories)
    origins = sorted(tuple(sorted(set(categories[labels[batch]].tolist()))) for batch in plan)
    assert len(plan) == 3  # category 2; 0 and 1, in which 3 and 4 are left over and joined: 6 classes
    assert (2,) in origins
    assert {category for origin in origins if origin != (2,) for category in origin} <= {0, 1, 3, 4}


@pytest.mark.parametrize(
    ("name", "labels", "batch_size", "message"),
    [
        ("m_per_clas", UNEVEN, 8, "unknown sampler 'm_per_clas': did you mean 'm_per_class'"),
        ("m_per_class", UNEVEN, 10, "a batch of 10 with 4 images per class needs 2.5 classes"),
        ("m_per_class", UNEVEN, 40, "needs 10 classes, expected a whole number of at most 8"),
        ("category", UNEVEN, 8, "needs the category of each class: add a column category to the table"),
        ("random", UNEVEN, 100, "87 images cannot fill a batch of 100: set train.batch_size from 1 to 87"),
        ("random", UNEVEN, 0, "batch_size must be at least 1, found 0"),
        ("random", np.zeros((4, 2)), 2, r"labels have the shape \(4, 2\)"),
    ],
)
def test_errors_name_both_numbers(name: str, labels: np.ndarray, batch_size: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        epoch_plan(name, labels, batch_size)


def test_categories_are_one_per_class() -> None:
    with pytest.raises(
        InputError, match=r"categories are int64 of the shape \(7,\): expected one integer for each of 8 classes"
    ):
        epoch_plan("category", UNEVEN, 8, categories=[0] * 7)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 8.0}, "batch_size must be a whole number of at least 1, found 8.0"),
        ({"batch_size": "8"}, "batch_size must be a whole number"),
        ({"per_class": 2.0}, "per_class must be a whole number"),
        ({"per_class": 0}, "per_class must be at least 1"),
        ({"seed": -1}, "seed must be at least 0, found -1"),
        ({"epoch": -1}, "epoch must be at least 0, found -1"),
        ({"categories": list("aabbccdd")}, "categories are <U1 of the shape"),
    ],
)
def test_arguments_of_another_form_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        epoch_plan("category", UNEVEN, **{"batch_size": 8, "categories": [0] * 8, **options})


def test_a_plan_is_the_batch_sampler_of_a_loader() -> None:
    plan = epoch_plan("m_per_class", UNEVEN, 8, per_class=2)
    loader = DataLoader(TensorDataset(torch.arange(len(UNEVEN))), batch_sampler=plan)
    assert [batch.tolist() for (batch,) in loader] == plan.tolist()
