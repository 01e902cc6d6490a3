"""Initialization of the projection at the principal axes of the features."""

import numpy as np
import pytest
import torch

from hgsl.engine.parts.head import start_at_principal_axes
from hgsl.models import create_embedder


def embedded(features: np.ndarray, size: int) -> torch.Tensor:
    model = create_embedder("test_resnet", embedding_size=size, weights="none")
    start_at_principal_axes(model, features)
    return model.head(torch.from_numpy(features)).detach()


def features_of_rank(rank: int, count: int = 40) -> np.ndarray:
    model = create_embedder("test_resnet", weights="none")
    generator = np.random.default_rng(0)
    return (generator.random((count, rank)) @ generator.random((rank, model.embedding_size))).astype(np.float32)


@pytest.mark.parametrize("size", [5, 64])
def test_enough_axes_keep_every_cosine(size: int) -> None:
    features = features_of_rank(5)
    unit = torch.nn.functional.normalize(torch.from_numpy(features), dim=1)
    found = embedded(features, size)
    torch.testing.assert_close(found @ found.T, unit @ unit.T, atol=1e-5, rtol=0)


def test_few_axes_are_the_best_of_their_number_and_repeat() -> None:
    features = features_of_rank(20)
    model = create_embedder("test_resnet", embedding_size=3, weights="none")
    before = torch.get_rng_state()
    start_at_principal_axes(model, features)
    assert torch.equal(torch.get_rng_state(), before)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    best = np.linalg.svd(unit.astype(np.float64))[2][:3]
    weight = model.projection.weight.detach().double().numpy()
    np.testing.assert_allclose(weight.T @ weight, best.T @ best, atol=1e-3)
    assert torch.equal(embedded(features, 3), embedded(features, 3))
