"""The loss from the side of the class centers, against a slow, obvious version of its formula."""

import math

import pytest
import torch

from hgsl.common.errors import InputError
from hgsl.config import LossConfig
from hgsl.engine.parts.objective import build_objective
from hgsl.losses import HardGlobalSoftminLoss, ShardedHardGlobalSoftminLoss, sparse_optimizer
from hgsl.losses.both_sides import center_side_loss
from hgsl.losses.scoring.similarity import unit


def batch(size=9, classes=6, dimension=5):
    generator = torch.Generator().manual_seed(0)
    x = unit(torch.randn(size, dimension, generator=generator, dtype=torch.float64))
    centers = torch.randn(classes, dimension, generator=generator, dtype=torch.float64)
    return x, centers, torch.randint(classes - 1, (size,), generator=generator)  # the last class has no image


def log_sum(values):
    return math.log(sum(math.exp(value) for value in values))


def oracle(x, centers, labels, scale, top_k, margin, similarity):
    """The formula, one number at a time."""
    losses = []
    for j in sorted(set(labels.tolist())):
        w = [value / math.hypot(*centers[j].tolist()) for value in centers[j].tolist()]
        positives, negatives = [], []
        for vector, label in zip(x.tolist(), labels.tolist(), strict=True):
            closeness = 1 - math.sqrt(math.dist(vector, w) ** 2 + 1e-6)
            if similarity == "cosine":
                closeness = sum(a * b for a, b in zip(vector, w, strict=True))
            (positives if label == j else negatives).append(scale * (closeness - margin * (label == j)))
        nearest = sorted(negatives)[-top_k:] if top_k else negatives
        losses.append(log_sum([*positives, *nearest]) - log_sum(positives))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("top_k", [1, 3, 20, None])
@pytest.mark.parametrize("margin", [0.0, 0.2])
@pytest.mark.parametrize("similarity", ["euclidean", "cosine"])
def test_equals_the_formula(top_k, margin, similarity):
    x, centers, labels = batch()
    actual = center_side_loss(x, centers, labels, 7.0, top_k, margin=margin, similarity=similarity)
    assert actual.item() == pytest.approx(oracle(x, centers, labels, 7.0, top_k, margin, similarity), abs=1e-11)


@pytest.mark.parametrize("similarity", ["euclidean", "cosine"])
def test_gradients_are_those_of_finite_differences(similarity):
    x, centers, labels = batch(size=5)
    scale = torch.tensor(3.0, dtype=torch.float64)

    def loss(x, centers, scale):
        return center_side_loss(unit(x), centers, labels, scale, 2, margin=0.1, similarity=similarity)

    assert torch.autograd.gradcheck(loss, [value.requires_grad_() for value in (x, centers, scale)])


def test_a_batch_of_one_class_has_no_loss_and_no_gradient():
    x, centers, _ = batch()
    x.requires_grad_()
    loss = center_side_loss(x, centers, torch.full((9,), 2), 7.0, 3)
    loss.backward()
    assert loss.item() == 0
    assert x.grad.abs().max() < 1e-12


def test_its_weight_adds_it_to_the_loss():
    x, centers, labels = batch()
    plain, both = (
        HardGlobalSoftminLoss(6, 5, top_k=2, alpha=0.5, margin=0.1, both_sides=weight).double() for weight in (0.0, 2.0)
    )
    for loss_fn in (plain, both):
        loss_fn.set_centers(centers)
    other = center_side_loss(x, centers, labels, 20.0, 2, margin=0.1)
    torch.testing.assert_close(both(x, labels), plain(x, labels) + 2 * other)
    assert "both_sides=2.0" in repr(both)


def test_a_step_with_sparse_gradients_equals_a_dense_step():
    x, centers, labels = batch()
    moved = []
    for sparse in (False, True):
        loss_fn = HardGlobalSoftminLoss(6, 5, top_k=2, alpha=0.5, both_sides=1.0, decorrelation=0, sparse_grad=sparse)
        loss_fn.double().set_centers(centers)
        optimizer = sparse_optimizer(loss_fn, lr=0.1) if sparse else torch.optim.SGD([loss_fn.centers], lr=0.1)
        loss_fn(x, labels).backward()
        moved.append(loss_fn.centers.grad.to_dense().clone())
        optimizer.step()
    torch.testing.assert_close(*moved)


def test_impossible_combinations_are_refused():
    with pytest.raises(InputError, match="both_sides is -1"):
        HardGlobalSoftminLoss(6, 5, both_sides=-1)
    with pytest.raises(InputError, match="sharded"):
        ShardedHardGlobalSoftminLoss(6, 5, both_sides=1.0)
    with pytest.raises(ValueError, match="sharded"):
        LossConfig(sharded=True, both_sides=1.0)


def test_several_processes_gather_their_embeddings_for_it():
    assert build_objective(LossConfig(both_sides=1.0), 6, 5).gather
    assert not build_objective(LossConfig(), 6, 5).gather
