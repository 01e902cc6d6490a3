"""The regularizer: exact over pairs, in blocks, and unbiased when rows are sampled."""

import pytest
import torch

from hgsl.common.errors import InputError
from hgsl.losses import HardGlobalSoftminLoss
from hgsl.losses.decorrelation import EXACT_UP_TO, decorrelation, sampled_rows


def by_pairs(centers):
    w = torch.nn.functional.normalize(centers)
    terms = [(w[j] @ w[m]).abs() for j in range(len(w)) for m in range(len(w)) if j != m]
    return torch.stack(terms).mean()


@pytest.mark.parametrize("block", [2**20, 20, 1])
def test_exact_value_and_gradient(block, monkeypatch):
    monkeypatch.setattr("hgsl.losses.decorrelation.BLOCK", block)
    centers = torch.randn(9, 4, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(by_pairs(centers), centers)
    value = decorrelation(centers)
    value.backward()
    torch.testing.assert_close(value, by_pairs(centers))
    torch.testing.assert_close(centers.grad, expected)


def test_gradient_is_that_of_finite_differences():
    centers = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(decorrelation, [centers])


@pytest.mark.slow
def test_sampled_rows_are_unbiased_in_value_and_gradient():
    torch.manual_seed(0)
    centers = torch.randn(12, 3, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(by_pairs(centers), centers)
    values, gradients = [], []
    for _ in range(1500):  # five of twelve rows: half of the samples repeat one
        value = decorrelation(centers, sample=5)
        values.append(value.detach())
        gradients.append(torch.autograd.grad(value, centers)[0])
    for estimates, expected in ((torch.stack(values), by_pairs(centers)), (torch.stack(gradients), gradient)):
        error = (estimates.mean(0) - expected).abs()
        assert (error < 4.5 * estimates.std(0) / len(estimates) ** 0.5).all()


def test_a_sample_of_two_is_a_pair_of_different_rows_and_each_pair_as_likely():
    torch.manual_seed(0)
    counts = torch.zeros(3, 3)
    for _ in range(3000):
        first, second = sampled_rows(3, 2, torch.device("cpu")).tolist()
        counts[first, second] += 1
    expected = (1 - torch.eye(3)) * 500
    assert (counts - expected).abs().max() < 4.5 * 500**0.5
    assert counts.diagonal().sum() == 0
    assert decorrelation(torch.ones(3, 3), sample=2).item() == pytest.approx(1)


@pytest.mark.parametrize("sparse_grad", [False, True])
@pytest.mark.parametrize("options", [{}, {"chunk_size": 4}], ids=["dense", "gathered"])
def test_it_joins_the_loss_with_its_gradient(sparse_grad, options):
    loss_fn = HardGlobalSoftminLoss(9, 4, top_k=2, decorrelation=0.7, sparse_grad=sparse_grad, **options).double()
    embeddings, labels = torch.randn(5, 4, dtype=torch.float64), torch.randint(9, (5,))
    joined = loss_fn(embeddings, labels)
    (gradient,) = torch.autograd.grad(joined, loss_fn.centers)
    loss_fn.decorrelation = 0.0
    parts = loss_fn(embeddings, labels) + 0.7 * by_pairs(loss_fn.centers)
    (expected,) = torch.autograd.grad(parts, loss_fn.centers)
    torch.testing.assert_close(joined, parts)
    torch.testing.assert_close(gradient.to_dense(), expected.to_dense())


def test_one_class_has_no_pairs():
    assert decorrelation(torch.randn(1, 4)) == 0


def test_module_is_exact_up_to_its_limit_and_samples_beyond():
    for classes, exact in ((EXACT_UP_TO, True), (EXACT_UP_TO + 1, False)):
        loss_fn = HardGlobalSoftminLoss(classes, 4, top_k=1, decorrelation=1e3)
        embeddings, labels = torch.randn(2, 4), torch.tensor([0, 1])
        first, second = loss_fn(embeddings, labels), loss_fn(embeddings, labels)
        assert (first == second) == exact


def test_a_sample_of_one_has_no_pairs_and_is_refused():
    with pytest.raises(InputError, match="decorrelation_sample is 1: expected an integer of at least 2"):
        decorrelation(torch.randn(5, 4), sample=1)
