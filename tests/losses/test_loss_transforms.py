"""The loss under the transforms of ``torch.func``, as autograd computes it."""

import copy

import pytest
import torch
from torch.func import functional_call, grad, hessian, jacrev, jvp, vmap

from hgsl.losses import HardGlobalSoftminLoss

CASES = {
    "dense": {"num_classes": 10},
    "gathered": {"num_classes": 200, "top_k": 3, "decorrelation_sample": None},
    "negatives": {"num_classes": 10, "top_k": 3, "hard_set": "negatives", "margin": 0.1},
    "cosine": {"num_classes": 200, "top_k": 3, "similarity": "cosine", "decorrelation": 0.0},
    "both sides": {"num_classes": 10, "both_sides": 1.0},
}


def build(case):
    torch.manual_seed(0)
    loss_fn = HardGlobalSoftminLoss(embedding_size=6, alpha=1.0, **CASES[case]).double()
    labels = torch.tensor([0, 3, 3, 9])
    return loss_fn, torch.randn(4, 6, dtype=torch.float64), labels, dict(loss_fn.named_parameters())


def gradients(loss_fn, embeddings, labels):
    leaf = embeddings.clone().requires_grad_()
    loss_fn(leaf, labels).backward()
    return leaf.grad, {name: parameter.grad for name, parameter in loss_fn.named_parameters()}


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_those_of_autograd(case):
    loss_fn, embeddings, labels, parameters = build(case)
    detached = {name: parameter.detach() for name, parameter in parameters.items()}

    def call(values, vectors):
        return functional_call(loss_fn, values, (vectors, labels))

    of_parameters, of_embeddings = grad(call, argnums=(0, 1))(detached, embeddings)
    expected = gradients(loss_fn, embeddings, labels)
    torch.testing.assert_close((of_embeddings, of_parameters), expected)
    torch.testing.assert_close(jacrev(call, argnums=1)(detached, embeddings), expected[0])
    value, slope = jvp(lambda vectors: call(detached, vectors), (embeddings,), (expected[0],))
    torch.testing.assert_close(slope, expected[0].square().sum())
    torch.testing.assert_close(value, loss_fn(embeddings, labels))


@pytest.mark.filterwarnings("error:There is a performance drop")
@pytest.mark.parametrize("case", ["dense", "gathered"])
def test_gradients_of_single_images(case):
    loss_fn, embeddings, labels, parameters = build(case)
    detached = {name: parameter.detach() for name, parameter in parameters.items()}
    single = grad(lambda values, x, y: functional_call(loss_fn, values, (x[None], y[None])))
    each = vmap(single, in_dims=(None, 0, 0))(detached, embeddings, labels)
    for row in range(len(labels)):
        expected = gradients(copy.deepcopy(loss_fn), embeddings[row : row + 1], labels[row : row + 1])[1]
        torch.testing.assert_close({name: values[row] for name, values in each.items()}, expected)


def test_gradients_of_several_tables_of_centers():
    loss_fn, embeddings, labels, _ = build("gathered")
    tables = torch.randn(3, 200, 6, dtype=torch.float64)
    values = vmap(lambda table: functional_call(loss_fn, {"centers": table}, (embeddings, labels)))(tables)
    expected = [functional_call(loss_fn, {"centers": table}, (embeddings, labels)) for table in tables]
    torch.testing.assert_close(values, torch.stack(expected))


def test_second_derivatives_are_those_of_autograd():
    loss_fn, embeddings, labels, _ = build("dense")
    expected = torch.autograd.functional.hessian(lambda vectors: loss_fn(vectors, labels), embeddings)
    torch.testing.assert_close(hessian(lambda vectors: loss_fn(vectors, labels))(embeddings), expected)
