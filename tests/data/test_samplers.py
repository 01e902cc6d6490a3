"""Plans of an epoch: what each promises, under several processes, and from the middle on."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, TensorDataset

from hgsl.common.errors import InputError
from hgsl.data.samplers import SAMPLERS, EpochBatches, epoch_plan

SIZES = [1, 2, 3, 5, 8, 13, 21, 34]
UNEVEN = np.random.default_rng(0).permutation(np.repeat(np.arange(8), SIZES))


def plans(kind: str, labels: np.ndarray, batch_size: int, world_size: int, **options: int) -> np.ndarray:
    return np.stack(
        [epoch_plan(kind, labels, batch_size, rank=r, world_size=world_size, **options) for r in range(world_size)]
    )


@pytest.mark.parametrize("kind", SAMPLERS)
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_processes_are_disjoint_and_equally_long(kind: str, world_size: int) -> None:
    labels = np.repeat(np.arange(6), 17)
    found = plans(kind, labels, 8, world_size, per_class=4)
    assert found.shape[0] == world_size
    for a in range(world_size):
        for b in range(a):
            assert not set(found[a].ravel()) & set(found[b].ravel())


@pytest.mark.parametrize("kind", SAMPLERS)
def test_an_epoch_depends_on_seed_and_number_alone(kind: str) -> None:
    plan = epoch_plan(kind, UNEVEN, 8, seed=1, epoch=2)
    np.random.seed(7)  # noqa: NPY002 - the global state must not matter
    torch.manual_seed(7)
    assert np.array_equal(epoch_plan(kind, UNEVEN, 8, seed=1, epoch=2), plan)
    for changed in ({"seed": 2, "epoch": 2}, {"seed": 1, "epoch": 3}):
        other = epoch_plan(kind, UNEVEN, 8, **changed)
        assert other.shape == plan.shape  # the schedule can count on the length
        assert not np.array_equal(other, plan)


@pytest.mark.parametrize("world_size", [1, 3])
def test_random_takes_every_row_once(world_size: int) -> None:
    rows = plans("random", UNEVEN, 4, world_size).ravel()
    assert len(rows) == len(set(rows)) == len(UNEVEN) // (4 * world_size) * 4 * world_size


@settings(deadline=None)
@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=12),
    per_class=st.integers(1, 4),
    classes=st.integers(1, 6),
    world_size=st.integers(1, 3),
)
def test_m_per_class_is_exact(sizes: list[int], per_class: int, classes: int, world_size: int) -> None:
    labels = np.repeat(np.arange(len(sizes)), sizes)
    batch_size = per_class * classes
    groups = [max(size // per_class, 1) for size in sizes]
    most = max(b for b in range(sum(groups) + 1) if sum(min(g, b) for g in groups) >= b * classes)
    try:
        found = plans("m_per_class", labels, batch_size, world_size, per_class=per_class)
    except InputError:
        assert classes > len(sizes) or len(labels) < batch_size * world_size or most < world_size
        return
    assert found.shape == (world_size, most // world_size, batch_size)
    for batch in found.reshape(-1, batch_size):
        assert sorted(Counter(labels[batch].tolist()).values()) == [per_class] * classes
    times = Counter(found.ravel().tolist())
    for row, count in times.items():
        size = sizes[labels[row]]
        assert count <= -(-per_class // size) if size < per_class else count == 1


@settings(deadline=None)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=9),
    batch_size=st.integers(1, 6),
    world_size=st.integers(1, 3),
)
def test_class_balanced_is_balanced(sizes: list[int], batch_size: int, world_size: int) -> None:
    labels = np.repeat(np.arange(len(sizes)), sizes)
    if len(labels) < batch_size * world_size:
        return
    found = plans("class_balanced", labels, batch_size, world_size)
    for plan in found:
        counts = np.bincount(labels[plan.ravel()], minlength=len(sizes))
        assert counts.max() - counts.min() <= 1
        for label, size in enumerate(sizes):
            times = Counter(plan[labels[plan] == label].tolist())
            own = size // world_size if size >= world_size else size
            if len(times) >= own > 0 and times:
                assert max(times.values()) - min(times.values()) <= 1
    for row in range(len(labels)):
        users = sum(row in plan for plan in found)
        assert users <= 1 or sizes[labels[row]] < world_size


def test_refusals_name_both_numbers() -> None:
    for arguments, message in (
        ({"kind": "m_per_clas", "batch_size": 8}, "did you mean 'm_per_class'"),
        ({"kind": "m_per_class", "batch_size": 10}, "a batch of 10 with 4 images a class needs 2.5 classes"),
        ({"kind": "m_per_class", "batch_size": 40}, "needs 10 classes, a whole number of at most 8"),
        ({"kind": "random", "batch_size": 100}, "87 images cannot fill a batch of 100 on each of 1 processes"),
        ({"kind": "random", "batch_size": 0}, "cannot fill a batch of 0"),
        ({"kind": "random", "batch_size": 8, "rank": 2, "world_size": 2}, "rank 2 is none of 2 processes"),
    ):
        with pytest.raises(InputError, match=message):
            epoch_plan(labels=UNEVEN, **arguments)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="too uneven"):
        epoch_plan("m_per_class", [0] * 40 + [1, 1], 4, per_class=2, world_size=3)


@pytest.mark.parametrize("kind", SAMPLERS)
@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_goes_on_in_the_middle_of_an_epoch(kind: str, workers: int) -> None:
    data = TensorDataset(torch.arange(len(UNEVEN)))

    def batches(sampler: EpochBatches) -> list[list[int]]:
        return [rows.tolist() for (rows,) in DataLoader(data, batch_sampler=sampler, num_workers=workers)]

    sampler = EpochBatches(kind, UNEVEN, 8, seed=5)
    sampler.set_epoch(3)
    whole = batches(sampler)
    assert len(whole) == len(sampler)
    state = sampler.state_dict(done=4)
    fresh = EpochBatches(kind, UNEVEN, 8, seed=5)
    fresh.load_state_dict(state)
    assert len(fresh) == len(whole) - 4
    assert batches(fresh) == whole[4:]
    again = EpochBatches(kind, UNEVEN, 8, seed=5)
    again.load_state_dict(fresh.state_dict(done=2))
    assert batches(again) == whole[6:]
    fresh.set_epoch(4)
    sampler.set_epoch(4)
    assert batches(fresh) == batches(sampler) != whole
