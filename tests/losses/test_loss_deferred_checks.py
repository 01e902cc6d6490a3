"""Deferred checks: an invalid value gives NaN, and an error when the values are read; a CPU is always strict."""

import math
from contextlib import nullcontext

import pytest
import torch

from hgsl.common.errors import InputError
from hgsl.losses import HardGlobalSoftminLoss, ShardedHardGlobalSoftminLoss, deferred_checks

CLASSES = 40


@pytest.fixture
def defer_on_cpu(monkeypatch):
    monkeypatch.setattr("hgsl.losses.deferral.DEFERRING_DEVICES", ("cpu",))


def batch(size=3):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(size, 8, generator=generator, requires_grad=True), torch.tensor([0, 7, CLASSES - 1])


OPTIONS = pytest.mark.parametrize(
    "options",
    [{}, {"both_sides": 1.0}, {"top_k": 1, "decorrelation": 0.0}, {"top_k": 2, "sparse_grad": True}],
    ids=["all", "both sides", "one", "sparse"],
)


@OPTIONS
@pytest.mark.parametrize(
    ("label", "value", "message"),
    [
        (CLASSES, 1.0, rf"labels 0 to {CLASSES} are out of range: there are {CLASSES} classes, 0 to {CLASSES - 1}"),
        (-1, 1.0, rf"labels -1 to {CLASSES - 1} are out of range"),
        (7, math.nan, "embeddings hold NaN or infinity: the network has diverged"),
        (7, -math.inf, "embeddings hold NaN or infinity: the network has diverged"),
    ],
)
def test_an_invalid_batch_has_a_nan_loss_and_is_reported_when_asked(defer_on_cpu, options, label, value, message):
    loss_fn = HardGlobalSoftminLoss(CLASSES, 8, **options)
    embeddings, labels = batch()
    with deferred_checks() as checks:
        loss_fn(embeddings, labels).backward()
        checks.raise_errors()
        wrong = labels.clone()
        wrong[1] = label
        loss = loss_fn(embeddings.detach().index_fill(0, torch.tensor([1]), value).requires_grad_(), wrong)
        assert loss.isnan()
        loss.backward()
        assert loss_fn(embeddings, labels).isfinite()  # a valid call does not hide it
        with pytest.raises(InputError, match=rf"^{message}.* \(in a batch since the last check\)$"):
            checks.raise_errors()
        checks.raise_errors()  # starts anew


@OPTIONS
def test_a_valid_batch_has_the_same_loss_and_gradients(defer_on_cpu, options):
    loss_fn = HardGlobalSoftminLoss(CLASSES, 8, **options)
    results = []
    for context in (nullcontext(), deferred_checks()):
        embeddings, labels = batch()
        torch.manual_seed(0)  # for the sampled pairs of the regularizer
        with context:
            loss = loss_fn(embeddings, labels)
        loss.backward()
        results.append((loss.detach(), embeddings.grad))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"alpha": -1.0}, r"alpha is -1: it must lie in \[1e-06, 1e\+06\]"),
        ({"alpha": math.nan}, "alpha is nan"),
        ({"center": math.nan}, r"centers are not finite, or of a norm outside 1e-12 to 1e\+18: if training"),
        ({"center": 1e19}, "centers are not finite"),
    ],
)
def test_parameters_that_diverged_are_reported(defer_on_cpu, change, message):
    loss_fn = HardGlobalSoftminLoss(CLASSES, 8)
    with torch.no_grad():
        loss_fn.alpha.fill_(change.get("alpha", 0.1))
        loss_fn.centers[3] = change.get("center", 0.0)  # zero is valid
    with deferred_checks() as checks:
        loss_fn(*batch())
        with pytest.raises(InputError, match=message):
            checks.raise_errors()


def test_a_center_of_zero_is_valid(defer_on_cpu):
    loss_fn = HardGlobalSoftminLoss(CLASSES, 8)
    with torch.no_grad():
        loss_fn.centers[3] = 0
    with deferred_checks() as checks:
        assert loss_fn(*batch()).isfinite()
        checks.raise_errors()


def test_losses_with_other_numbers_of_classes_are_told_apart(defer_on_cpu):
    embeddings, labels = batch()
    with deferred_checks() as checks:
        HardGlobalSoftminLoss(CLASSES, 8)(embeddings, labels)
        ShardedHardGlobalSoftminLoss(CLASSES // 2, 8)(embeddings, labels)
        with pytest.raises(InputError, match=rf"there are {CLASSES // 2} classes"):
            checks.raise_errors()


def test_a_call_outside_the_context_raises_at_once(defer_on_cpu):
    embeddings, labels = batch()
    with deferred_checks():
        pass
    with pytest.raises(InputError, match=f"labels {CLASSES} are out of range"):
        HardGlobalSoftminLoss(CLASSES, 8)(embeddings, labels + 1)


def test_a_cpu_raises_at_once_within_the_context():
    embeddings, labels = batch()
    with deferred_checks(), pytest.raises(InputError, match=f"labels {CLASSES} are out of range"):
        HardGlobalSoftminLoss(CLASSES, 8)(embeddings, labels + 1)
