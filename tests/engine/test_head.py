"""Stored features, and the initialization of the projection at their principal axes."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from hgsl.config import Config, DataConfig
from hgsl.engine.parts.build import build_eval_set, build_manifest
from hgsl.engine.parts.head import pooled_set, start_at_principal_axes
from hgsl.engine.runtime import Runtime
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


def test_networks_that_differ_in_their_pooling_alone_have_features_of_their_own(
    photo_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    config = Config(data=DataConfig(name="folder", root=str(photo_folder(classes=4, images=2))))
    manifest, runtime, stored = build_manifest(config.data), Runtime(torch.device("cpu"), torch.float32, 0), []
    for pooling in ("avg", "max", "avg"):
        torch.manual_seed(0)
        model = create_embedder("test_resnet", pooling, embedding_size=4, weights="none", image_size=96).eval()
        images = build_eval_set(config.data, manifest, model, "train")
        stored.append(np.array(pooled_set(model, images, config, runtime, False).features))
    assert np.array_equal(stored[0], stored[2])
    assert not np.allclose(stored[0], stored[1])
    assert len(list((tmp_path / "cache/hgsl/features").glob("*/embeddings.npy"))) == 2
