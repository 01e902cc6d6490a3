"""Initialization of class centers at the class means, and their similarity."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from hgsl.config import Config, LossConfig
from hgsl.engine.parts.centers import class_vectors, nearest_similarity, start_at_means, start_centers
from hgsl.engine.parts.objective import build_objective
from hgsl.engine.runtime import Runtime, build_runtime


@dataclass
class Points:
    """Three classes; ``images`` are the embeddings themselves."""

    num_classes: int = 3
    labels: Any = field(default_factory=lambda: np.array([0, 2, 1, 0, 2, 2]))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int, int]:
        vector = torch.nn.functional.normalize(torch.randn(4, generator=torch.Generator().manual_seed(index)), dim=0)
        return vector, int(self.labels[index]), index


class Same(nn.Module):
    embedding_size = 4

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images


def means(points: Points) -> torch.Tensor:
    vectors = torch.stack([points[i][0] for i in range(len(points))])
    rows = [vectors[points.labels == label].mean(0) for label in range(points.num_classes)]
    return torch.stack([row / row.norm() for row in rows])


@pytest.fixture
def runtime() -> Runtime:
    config = Config()
    config.run.device, config.run.precision, config.data.workers = "cpu", "float32", 0
    return build_runtime(config)


@pytest.mark.parametrize("sharded", [False, True])
def test_centers_are_the_directions_of_the_means(runtime: Runtime, sharded: bool) -> None:
    config, points = Config(), Points()
    config.loss.sharded = sharded
    loss_fn = build_objective(config.loss, 3, 4).loss_fn
    start_at_means(loss_fn, Same(), points, runtime, batch=2)
    torch.testing.assert_close(loss_fn.centers.detach(), 2 * means(points))  # 2 is the root of their dimension


def test_few_classes_have_a_smaller_alpha() -> None:
    alphas = [
        build_objective(LossConfig(alpha=alpha), classes, 4).loss_fn.alpha.item()  # type: ignore[arg-type]
        for alpha, classes in (("auto", 11), ("auto", 12), (0.2, 12))
    ]
    assert alphas == pytest.approx([0.4, 1.0, 0.2])
    with pytest.raises(ValueError, match=r"loss.alpha must be finite, found nan"):
        LossConfig(alpha=float("nan"))


@pytest.mark.parametrize(
    ("setting", "classes", "at_means"),
    [("random", 12, False), ("class_means", 3, True), ("auto", 11, False), ("auto", 12, True)],
)
def test_few_classes_start_at_random_centers(runtime: Runtime, setting: Any, classes: int, at_means: bool) -> None:
    config, points = Config(), Points(classes, np.arange(classes))
    config.loss.centers = setting
    loss_fn = build_objective(config.loss, classes, 4).loss_fn
    before = loss_fn.centers.detach().clone()
    start_centers(loss_fn, config.loss, Same(), points, runtime, batch=4)
    torch.testing.assert_close(loss_fn.centers.detach(), 2 * means(points) if at_means else before)


@pytest.mark.parametrize(
    ("name", "shape"), [("ProxyAnchorLoss", (5, 4)), ("ArcFaceLoss", (5, 4)), ("TripletMarginLoss", None)]
)
def test_class_vectors_of_any_loss(name: str, shape: tuple[int, int] | None) -> None:
    config = Config()
    config.loss.name = name
    vectors = class_vectors(build_objective(config.loss, 5, 4).loss_fn, 5, 4)
    assert (None if vectors is None else tuple(vectors.shape)) == shape


@pytest.mark.parametrize("classes", [2, 7, 12])
def test_similarity_of_the_nearest_of_many_or_few(monkeypatch: pytest.MonkeyPatch, classes: int) -> None:
    centers = torch.randn(classes, 3, generator=torch.Generator().manual_seed(1))
    unit = centers / centers.norm(dim=1, keepdim=True)
    nearest = [max(float(unit[i] @ unit[j]) for j in range(classes) if j != i) for i in range(classes)]
    assert nearest_similarity(centers) == pytest.approx(sum(nearest) / classes, abs=1e-6)
    monkeypatch.setattr("hgsl.engine.parts.centers.CHUNK", 4)  # every second of 7, every third of 12
    step = -(-classes // 4)
    looked_at = nearest[::step]
    assert nearest_similarity(centers) == pytest.approx(sum(looked_at) / len(looked_at), abs=1e-6)


@pytest.mark.parametrize("count", [0, 1])
def test_a_shard_of_less_than_two_centers_has_no_similarity(count: int) -> None:
    assert nearest_similarity(torch.ones(count, 3)) is None
