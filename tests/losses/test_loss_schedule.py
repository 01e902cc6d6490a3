"""Schedules of K."""

import doctest

import pytest
import torch

from hgsl.common.errors import InputError
from hgsl.losses import HardGlobalSoftminLoss, schedule, scheduled_top_k


def test_documented_example():
    assert doctest.testmod(schedule) == (0, 1)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({}, "must map epochs, from 0"),
        ({1: 5}, "from 0"),
        ({-1: 3, 0: 2}, "from 0"),
        ({0: 0}, "is 0: expected an integer"),
    ],
)
def test_impossible_schedules_are_refused(table, message):
    with pytest.raises(InputError, match=message):
        scheduled_top_k(table, 3)


def test_set_top_k_takes_effect_at_the_next_call():
    loss_fn = HardGlobalSoftminLoss(30, 4, alpha=10, decorrelation=0.0)
    embeddings, labels = torch.randn(8, 4), torch.randint(30, (8,))
    losses = []
    for epoch in range(3):
        loss_fn.set_top_k(scheduled_top_k({0: None, 1: 5, 2: 1}, epoch))
        losses.append(loss_fn(embeddings, labels).item())
    assert losses[0] > losses[1] > losses[2]  # fewer terms in the sum
    fresh = HardGlobalSoftminLoss(30, 4, top_k=1, alpha=10, decorrelation=0.0)
    fresh.set_centers(loss_fn.centers)
    assert fresh(embeddings, labels).item() == pytest.approx(losses[2])


@pytest.mark.parametrize(("hard_set", "largest"), [("all", 30), ("negatives", 29)])
def test_set_top_k_refuses_what_cannot_be_chosen(hard_set, largest):
    loss_fn = HardGlobalSoftminLoss(30, 4, hard_set=hard_set)
    loss_fn.set_top_k(largest)
    for bad in (0, largest + 1):
        with pytest.raises(InputError, match=f"use 1 to {largest}"):
            loss_fn.set_top_k(bad)
    assert loss_fn.top_k == largest
