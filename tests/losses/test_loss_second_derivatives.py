"""Second derivatives: those of finite differences, or a one-line error where there are none."""

import pytest
import torch

from hgsl.common.collectives import gather_with_gradient
from hgsl.common.errors import InputError
from hgsl.common.precision import float32_products
from hgsl.losses import ShardedHardGlobalSoftminLoss
from hgsl.losses.decorrelation import decorrelation
from hgsl.losses.functional import hard_global_softmin_loss


def random_batch(size=3, classes=6, dimension=3):
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(size, dimension, generator=generator, dtype=torch.float64, requires_grad=True)
    centers = torch.randn(classes, dimension, generator=generator, dtype=torch.float64, requires_grad=True)
    return embeddings, centers, torch.randint(classes, (size,), generator=generator)


@pytest.mark.parametrize("similarity", ["euclidean", "cosine"])
@pytest.mark.parametrize("chunk_size", [None, 4], ids=["dense", "gathered"])
@pytest.mark.parametrize("hard_set", ["all", "negatives"])
def test_second_derivatives_are_those_of_finite_differences(similarity, chunk_size, hard_set):
    embeddings, centers, labels = random_batch()
    alpha = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    options = {"similarity": similarity, "chunk_size": chunk_size, "margin": 0.1, "decorrelation": 0.5}

    def loss(embeddings, centers, alpha):
        return hard_global_softmin_loss(embeddings, centers, labels, alpha, 2, hard_set, both_sides=0.7, **options)

    assert torch.autograd.gradgradcheck(loss, [embeddings, centers, alpha])


@pytest.mark.parametrize("chunk_size", [None, 4], ids=["dense", "gathered"])
def test_second_derivatives_of_the_centers_alone_and_without_a_regularizer(chunk_size):
    embeddings, centers, labels = random_batch()

    def loss(centers):
        return hard_global_softmin_loss(
            embeddings.detach(), centers, labels, 3.0, 2, chunk_size=chunk_size, decorrelation=0
        )

    assert torch.autograd.gradgradcheck(loss, [centers])


def test_second_derivatives_of_the_regularizer_are_those_of_finite_differences():
    _, centers, _ = random_batch()
    assert torch.autograd.gradgradcheck(decorrelation, [centers])


def test_lower_precision_of_products_does_not_reach_the_second_derivative_of_the_regularizer():
    centers = torch.randn(40, 64, generator=torch.Generator().manual_seed(0), requires_grad=True)

    def second_derivative():
        (gradient,) = torch.autograd.grad(decorrelation(centers), centers, create_graph=True)
        return torch.autograd.grad(gradient.square().sum(), centers)[0]

    expected = second_derivative()
    with float32_products():  # sets the precision again that was set before
        torch.backends.mkldnn.matmul.fp32_precision = "bf16"
        assert torch.equal(second_derivative(), expected)


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_second_derivatives_with_fixed_centers(weight):
    embeddings, centers, labels = random_batch()
    centers = centers.detach()

    def loss(embeddings):
        return hard_global_softmin_loss(
            embeddings, centers, labels, 3.0, 2, "negatives", chunk_size=4, decorrelation=weight
        )

    assert torch.autograd.gradgradcheck(loss, [embeddings])


@pytest.mark.parametrize("chunk_size", [None, 4], ids=["dense", "gathered"])
def test_a_graph_does_not_change_the_gradient(chunk_size):
    embeddings, centers, labels = random_batch()
    options = {"top_k": 2, "decorrelation": 0.5, "chunk_size": chunk_size}
    loss = hard_global_softmin_loss(embeddings, centers, labels, 1.0, **options)
    plain = torch.autograd.grad(loss, [embeddings, centers], retain_graph=True)
    recorded = torch.autograd.grad(loss, [embeddings, centers], create_graph=True)
    torch.testing.assert_close(recorded, plain)
    assert all(gradient.requires_grad for gradient in recorded)


@pytest.mark.parametrize("chunk_size", [None, 4], ids=["dense", "gathered"])
def test_sparse_gradients_have_the_second_derivatives_of_dense_ones(chunk_size):
    embeddings, centers, labels = random_batch()
    results = []
    for sparse in (False, True):
        options = {"sparse_grad": sparse, "chunk_size": chunk_size, "decorrelation": 0.5, "both_sides": 0.7}
        loss = hard_global_softmin_loss(embeddings, centers, labels, 3.0, 2, **options)
        gradients = torch.autograd.grad(loss, [embeddings, centers], create_graph=True)
        total = sum((gradient.to_dense() ** 2).sum() for gradient in gradients)
        results.append([gradient.to_dense() for gradient in torch.autograd.grad(total, [embeddings, centers])])
    torch.testing.assert_close(results[1], results[0])


@pytest.mark.parametrize("inputs", ["embeddings", "centers"])
@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_sharded_centers_have_no_second_derivative(inputs, weight):
    embeddings, _, labels = random_batch()
    loss_fn = ShardedHardGlobalSoftminLoss(6, 3, top_k=2, decorrelation=weight).double()
    loss = loss_fn(embeddings, labels)
    with pytest.raises(InputError, match=r"no second derivative \(create_graph=True\)"):
        torch.autograd.grad(loss, embeddings if inputs == "embeddings" else loss_fn.centers, create_graph=True)


def test_gathered_embeddings_have_no_second_derivative():
    embeddings, centers, labels = random_batch()
    loss = hard_global_softmin_loss(gather_with_gradient(embeddings), centers, labels, 1.0)
    with pytest.raises(InputError, match="no second derivative"):
        torch.autograd.grad(loss, embeddings, create_graph=True)
