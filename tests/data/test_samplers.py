"""Samplers: the guarantees of each, for any class sizes, and the errors."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hgsl.common.errors import InputError
from hgsl.data.samplers import SAMPLERS, epoch_plan

SIZES = [1, 2, 3, 5, 8, 13, 21, 34]
UNEVEN = np.random.default_rng(0).permutation(np.repeat(np.arange(8), SIZES))


@pytest.mark.parametrize("name", SAMPLERS)
def test_an_epoch_depends_on_seed_and_number_alone(name: str) -> None:
    plan = epoch_plan(name, UNEVEN, 8, seed=1, epoch=2)
    np.random.seed(7)  # noqa: NPY002 - the global state must not matter
    torch.manual_seed(7)
    assert np.array_equal(epoch_plan(name, UNEVEN, 8, seed=1, epoch=2), plan)
    for changed in ({"seed": 2, "epoch": 2}, {"seed": 1, "epoch": 3}):
        other = epoch_plan(name, UNEVEN, 8, **changed)
        assert other.shape == plan.shape  # the schedule can count on the length
        assert not np.array_equal(other, plan)


@pytest.mark.parametrize("name", SAMPLERS)
def test_labels_may_be_a_list_any_integers_or_class_names(name: str) -> None:
    plan = epoch_plan(name, UNEVEN, 8)
    names = [f"class_{label}" for label in UNEVEN]
    for labels in (UNEVEN.tolist(), UNEVEN.astype(np.int32) - 5, torch.from_numpy(UNEVEN), names, np.array(names)):
        assert np.array_equal(epoch_plan(name, labels, 8), plan)


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


@pytest.mark.parametrize(
    ("name", "labels", "batch_size", "message"),
    [
        ("m_per_clas", UNEVEN, 8, "unknown sampler 'm_per_clas': did you mean 'm_per_class'"),
        ("m_per_class", UNEVEN, 10, "a batch of 10 with 4 images per class needs 2.5 classes"),
        ("m_per_class", UNEVEN, 40, "needs 10 classes, expected a whole number of at most 8"),
        ("random", UNEVEN, 100, "87 images cannot fill a batch of 100: set train.batch_size from 1 to 87"),
        ("random", UNEVEN, 0, "cannot fill a batch of 0"),
        ("random", np.zeros((4, 2)), 2, r"labels have the shape \(4, 2\)"),
    ],
)
def test_errors_name_both_numbers(name: str, labels: np.ndarray, batch_size: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        epoch_plan(name, labels, batch_size)
