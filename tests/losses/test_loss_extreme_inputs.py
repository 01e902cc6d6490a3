"""Extreme inputs: a correct result or a one-line error, never a wrong number."""

import math

import numpy as np
import pytest
import torch

from hgsl.common.errors import InputError
from hgsl.losses import (
    HardGlobalSoftminLoss,
    ShardedHardGlobalSoftminLoss,
    parameter_groups,
    scheduled_top_k,
    sparse_optimizer,
)
from hgsl.losses.decorrelation import decorrelation
from hgsl.losses.functional import class_logits, hard_global_softmin_loss
from hgsl.losses.scoring.similarity import normalize_

ROUTES = pytest.mark.parametrize("chunk_size", [None, 3], ids=["dense", "gathered"])


def random_batch(classes=9, dimension=5):
    generator = torch.Generator().manual_seed(0)
    embeddings, centers = (torch.randn(n, dimension, generator=generator) for n in (4, classes))
    return embeddings, centers, torch.tensor([0, 3, 3, 8])


@ROUTES
@pytest.mark.parametrize("similarity", ["euclidean", "cosine"])
def test_the_norm_of_an_embedding_does_not_matter(chunk_size, similarity):
    embeddings, centers, labels = random_batch()
    scales = torch.tensor([[1e-22], [1e19], [1e-30], [1e35]])
    options = {"similarity": similarity, "chunk_size": chunk_size}
    results = []
    for leaf in (embeddings.clone(), embeddings * scales):
        leaf.requires_grad_()
        loss = hard_global_softmin_loss(leaf, centers, labels, 1.0, 3, **options)
        loss.backward()
        results.append((loss.detach(), leaf.grad))
    (expected, gradient), (loss, scaled_gradient) = results
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(scaled_gradient * scales, gradient, rtol=1e-4, atol=1e-5)


def test_logits_and_normalization_take_any_norm():
    embeddings, centers, _ = random_batch()
    loss_fn = HardGlobalSoftminLoss(9, 5, alpha=1.0)
    loss_fn.set_centers(centers * torch.logspace(-30, 30, 9)[:, None])
    torch.testing.assert_close(loss_fn.centers.detach(), torch.nn.functional.normalize(centers))
    torch.testing.assert_close(loss_fn.get_logits(embeddings * 1e-22), loss_fn.get_logits(embeddings))
    table = torch.full((2, 4), 1e30)
    normalize_(table, torch.tensor([1]))
    assert torch.equal(table, torch.stack([torch.full((4,), 1e30), torch.full((4,), 0.5)]))
    torch.testing.assert_close(decorrelation(centers * 1e25), decorrelation(centers))


@ROUTES
@pytest.mark.parametrize("value", [math.nan, math.inf, 1e19, 1e-22])
@pytest.mark.parametrize("loss_class", [HardGlobalSoftminLoss, ShardedHardGlobalSoftminLoss])
def test_centers_without_a_direction_are_named(chunk_size, value, loss_class):
    embeddings, _, labels = random_batch()
    loss_fn = loss_class(9, 5, top_k=2, chunk_size=chunk_size)
    with torch.no_grad():
        loss_fn.centers[6] = value
    with pytest.raises(InputError, match=r"centers are not finite, or of a norm outside 1e-12 to 1e\+18, in row 6: "):
        loss_fn(embeddings, labels)


@ROUTES
def test_a_center_of_zero_is_as_far_from_every_embedding(chunk_size):
    embeddings, centers, labels = random_batch()
    centers[8] = 0
    options = {"chunk_size": chunk_size, "similarity": "cosine"}
    loss = hard_global_softmin_loss(embeddings[3:], centers, labels[3:], 1.0, 1, "negatives", **options)
    x = torch.nn.functional.normalize(embeddings[3:])
    nearest = (x @ torch.nn.functional.normalize(centers[:8]).T).max()
    torch.testing.assert_close(loss, torch.tensor([0.0, 10 * nearest]).logsumexp(0))


@pytest.mark.parametrize("change", ["all", "one", "replaced"])
def test_sparse_centers_that_change_behind_autograd_are_searched_correctly(change):
    embeddings, _, labels = random_batch()
    options = {"top_k": 2, "chunk_size": 4, "alpha": 1.0, "decorrelation": 0.0}
    loss_fn = HardGlobalSoftminLoss(9, 5, sparse_grad=True, **options)
    sparse_optimizer(loss_fn)
    loss_fn(embeddings, labels).backward()
    generator = torch.Generator().manual_seed(1)
    table = torch.randn(9, 5, generator=generator) * torch.logspace(-2, 2, 9)[:, None]
    if change == "all":
        loss_fn.centers.data.copy_(table)
    elif change == "one":
        loss_fn.centers.data[3] *= 1e-3
    else:
        loss_fn.centers.data = table
    expected = hard_global_softmin_loss(embeddings, loss_fn.centers.detach().clone(), labels, 1.0, 2)
    torch.testing.assert_close(loss_fn(embeddings, labels).detach(), expected)


@pytest.mark.parametrize("weights", [torch.ones(4, 1), torch.ones(1), torch.ones(()), torch.ones(5)], ids=str)
def test_weights_of_another_shape_are_refused(weights):
    embeddings, centers, labels = random_batch()
    with pytest.raises(InputError, match=r"weights have shape .*: expected \(4,\), one per embedding"):
        hard_global_softmin_loss(embeddings, centers, labels, weights=weights)


@pytest.mark.parametrize("weights", [[1.0] * 4, np.ones(4)], ids=["list", "array"])
def test_weights_of_another_type_are_refused(weights):
    embeddings, centers, labels = random_batch()
    with pytest.raises(InputError, match="weights: expected a tensor, found "):
        hard_global_softmin_loss(embeddings, centers, labels, weights=weights)


@pytest.mark.parametrize(
    "indices", [torch.tensor([0, 1]), ([0], [1]), (np.array([0]), np.array([1])), 3, (None,)], ids=str
)
def test_tuples_of_a_miner_in_other_containers_are_refused(indices):
    embeddings, _, labels = random_batch()
    with pytest.raises(InputError, match="indices_tuple: expected a t"):
        HardGlobalSoftminLoss(9, 5)(embeddings, labels, indices)


@pytest.mark.parametrize("loss_class", [HardGlobalSoftminLoss, ShardedHardGlobalSoftminLoss])
@pytest.mark.parametrize(
    ("indices", "message"),
    [
        (torch.tensor([0, -1]), "names embedding -1, but the batch has 4: expected 0 to 3"),
        (torch.tensor([0, 4]), "names embedding 4, but the batch has 4"),
        (torch.tensor([0.0, 1.0]), r"holds torch\.float32: expected integers"),
        (torch.tensor([True, False]), r"holds torch\.bool: expected integers"),
    ],
)
def test_indices_of_a_miner_outside_the_batch_are_refused(loss_class, indices, message):
    embeddings, _, labels = random_batch()
    with pytest.raises(InputError, match=message):
        loss_class(9, 5)(embeddings, labels, (indices, indices, indices))


@pytest.mark.parametrize("top_k", [True, 2.0, "2", 0, -1])
def test_a_top_k_that_is_not_an_integer_is_refused(top_k):
    embeddings, centers, labels = random_batch()
    for call in (
        lambda: hard_global_softmin_loss(embeddings, centers, labels, 0.1, top_k),
        lambda: HardGlobalSoftminLoss(9, 5, top_k=top_k),
        lambda: HardGlobalSoftminLoss(9, 5).set_top_k(top_k),
    ):
        with pytest.raises(InputError, match=f"top_k is {top_k!r}: with 9 classes .* use 1 to 9"):
            call()
    with pytest.raises(InputError, match=r"K of epoch 0 in the top_k schedule is .* expected an integer of at least 1"):
        scheduled_top_k({0: top_k}, 0)


def test_logits_of_another_dimension_are_refused():
    with pytest.raises(InputError, match=r"expected floating point \(batch, 5\)"):
        HardGlobalSoftminLoss(9, 5).get_logits(torch.randn(4, 3))


def test_a_numpy_integer_is_an_integer():
    embeddings, centers, labels = random_batch()
    losses = [hard_global_softmin_loss(embeddings, centers, labels, 0.1, k) for k in (2, np.int64(2))]
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chunk_size": True}, "chunk_size is True: expected an integer of at least 1, or None"),
        ({"chunk_size": 2.0}, "chunk_size is 2.0"),
        ({"decorrelation_sample": 1}, "decorrelation_sample is 1: expected an integer of at least 2"),
        ({"decorrelation_sample": 2.5}, "decorrelation_sample is 2.5"),
        ({"decorrelation": -0.1}, "decorrelation is -0.1: use 0"),
        ({"decorrelation": math.nan}, "decorrelation is nan"),
        ({"both_sides": math.inf}, "both_sides is inf"),
        ({"margin": math.nan}, "margin is nan"),
        ({"num_classes": 0}, "num_classes is 0: expected an integer of at least 1"),
        ({"num_classes": True}, "num_classes is True"),
        ({"embedding_size": 0}, "embedding_size is 0"),
        ({"embedding_size": 5.0}, r"embedding_size is 5\.0"),
        ({"alpha": "x"}, "alpha is 'x': expected a number"),
        ({"alpha": 0}, r"alpha is 0: it must lie in \[1e-06, 1e\+06\]"),
        ({"alpha": torch.ones(2)}, r"alpha is a tensor of shape \(2,\): expected a number"),
        ({"margin": None}, "margin is None: expected a number"),
        ({"margin": True}, "margin is True: expected a number"),
        ({"alpha": False}, "alpha is False: expected a number"),
        ({"alpha": math.nan}, "alpha is nan: expected a finite number"),
        ({"alpha": math.inf}, "alpha is inf: expected a finite number"),
    ],
)
def test_impossible_settings_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        HardGlobalSoftminLoss(**{"num_classes": 9, "embedding_size": 5, **options})


@pytest.mark.parametrize("rate", [math.nan, math.inf])
def test_rates_of_centers_and_scale_must_be_finite(rate):
    loss_fn = HardGlobalSoftminLoss(9, 5)
    with pytest.raises(InputError, match=f"centers_lr is {rate}: expected a finite number"):
        parameter_groups(loss_fn, rate)
    with pytest.raises(InputError, match=f"scale_lr is {rate}: expected a finite number"):
        parameter_groups(loss_fn, 0.1, rate)
    with pytest.raises(InputError, match=f"lr is {rate}: expected a finite number"):
        sparse_optimizer(HardGlobalSoftminLoss(9, 5, sparse_grad=True), lr=rate)
    with pytest.raises(InputError, match=f"alpha is {rate}: expected a finite number"):
        class_logits(torch.randn(2, 5), loss_fn.centers, rate)


@pytest.mark.parametrize("shape", [(9, 0), (0, 5), (5,), (9, 5, 1)])
def test_centers_that_are_not_a_matrix_are_refused(shape):
    embeddings = torch.randn(4, shape[-1])
    with pytest.raises(InputError, match=r"centers are torch\.float32 of shape .* with at least one of each"):
        hard_global_softmin_loss(embeddings, torch.randn(shape), torch.zeros(4, dtype=torch.int64))


@pytest.mark.parametrize("loss_class", [HardGlobalSoftminLoss, ShardedHardGlobalSoftminLoss])
@pytest.mark.parametrize(
    ("embeddings", "labels", "message"),
    [
        (torch.tensor(1.0), torch.tensor(0), r"embeddings are torch.float32 of shape \(\)"),
        (torch.ones(4), torch.tensor([0]), r"embeddings are torch.float32 of shape \(4,\)"),
        (torch.ones(1, 4), torch.tensor(0), r"labels are torch.int64 of shape \(\)"),
        (3, torch.tensor([0]), "embeddings: expected a tensor, found int"),
    ],
)
def test_inputs_without_a_batch_axis_are_refused(loss_class, embeddings, labels, message):
    with pytest.raises(InputError, match=message):
        loss_class(3, 4)(embeddings, labels)


@pytest.mark.parametrize("function", [hard_global_softmin_loss, lambda x, w, _: class_logits(x, w)])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, w, y: (x, w.numpy(), y), "centers: expected a tensor, found ndarray"),
        (lambda x, w, y: (x, w.tolist(), y), "centers: expected a tensor, found list"),
        (lambda x, w, y: (x.to("meta"), w.to("meta"), y.to("meta")), "values on one device, found embeddings on meta"),
        (lambda x, w, y: (x, w.to("meta"), y), "embeddings on cpu, .*centers on meta: move them"),
        (lambda x, w, y: (x.to(torch.float8_e5m2), w, y), "in 16 bits or more"),
        (lambda x, w, y: (x, w.to(torch.float8_e5m2), y), "in 16 bits or more"),
    ],
)
def test_tensors_that_cannot_be_computed_with_are_refused(function, change, message):
    embeddings, centers, labels = random_batch()
    with pytest.raises(InputError, match=message):
        function(*change(embeddings, centers, labels))


@pytest.mark.parametrize(
    ("alpha", "message"),
    [(0.0, "alpha is 0: it must lie in"), ("a", "alpha is 'a'"), (torch.tensor(True), r"alpha is tensor\(True\)")],
)
def test_logits_of_an_impossible_softness_are_refused(alpha, message):
    embeddings, centers, _ = random_batch()
    with pytest.raises(InputError, match=message):
        class_logits(embeddings, centers, alpha)


@pytest.mark.parametrize("name", ["embeddings", "labels"])
@pytest.mark.parametrize("convert", [torch.Tensor.numpy, torch.Tensor.tolist])
def test_other_containers_than_tensors_are_named(name, convert):
    batch = {"embeddings": torch.ones(2, 4), "labels": torch.tensor([0, 1])}
    batch[name] = convert(batch[name])
    with pytest.raises(InputError, match=f"{name}: expected a tensor, found .*: convert with torch.as_tensor"):
        HardGlobalSoftminLoss(3, 4)(**batch)
