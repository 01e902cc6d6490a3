"""Distillation losses against slow, obvious versions of their formulas."""

import math

import numpy as np
import pytest
import torch

from hgsl.common.errors import InputError
from hgsl.losses.distillation import embedding_distillation, feature_distillation, similarity_distillation


def batch(size: int = 6, width: int = 5, teacher_width: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = (size, width), (size, teacher_width)
    embeddings, teacher = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return embeddings, teacher


def unit_rows(values: torch.Tensor) -> np.ndarray:
    array = values.detach().numpy()
    return array / np.linalg.norm(array, axis=1, keepdims=True)


def divergence(embeddings: torch.Tensor, teacher: torch.Tensor, temperature: float) -> float:
    """The formula of the similarities, one number at a time."""
    x, t = unit_rows(embeddings), unit_rows(teacher)
    total = 0.0
    for i in range(len(x)):
        others = [j for j in range(len(x)) if j != i]
        p, q = ([math.exp(float(v[i] @ v[j]) / temperature) for j in others] for v in (t, x))
        total += sum(a / sum(p) * math.log(a / sum(p) / (b / sum(q))) for a, b in zip(p, q, strict=True))
    return total / len(x)


def test_the_distance_of_embeddings_equals_the_formula() -> None:
    embeddings, teacher = batch()
    expected = np.mean(np.sum((unit_rows(embeddings) - unit_rows(teacher)) ** 2, axis=1)) / 2
    assert embedding_distillation(embeddings, teacher).item() == pytest.approx(expected, abs=1e-12)
    assert embedding_distillation(3 * teacher, teacher).item() == pytest.approx(0, abs=1e-12)
    assert embedding_distillation(-teacher, teacher).item() == pytest.approx(2, abs=1e-12)


@pytest.mark.parametrize("temperature", [0.05, 1.0])
@pytest.mark.parametrize(("size", "teacher_width"), [(2, 5), (6, 5), (7, 9)])
def test_the_divergence_of_similarities_equals_the_formula(size: int, teacher_width: int, temperature: float) -> None:
    embeddings, teacher = batch(size, teacher_width=teacher_width)
    loss = similarity_distillation(embeddings, teacher, temperature)
    assert loss.item() == pytest.approx(divergence(embeddings, teacher, temperature), abs=1e-12)


def test_a_rotation_and_a_scale_leave_the_similarities_of_the_teacher() -> None:
    embeddings, _ = batch()
    rotation = torch.linalg.qr(batch(9, 9)[0])[0][:5]  # (5, 9), with orthonormal rows
    assert similarity_distillation(embeddings, 3 * embeddings @ rotation).item() == pytest.approx(0, abs=1e-12)
    assert similarity_distillation(embeddings[:1], embeddings[:1]).item() == 0


def test_features_are_normalized_by_the_variance_of_their_channels_in_every_layout() -> None:
    generator = torch.Generator().manual_seed(0)
    features, teacher = (torch.randn(4, 6, 3, 5, generator=generator) for _ in range(2))
    teacher += 10 * torch.arange(6.0).view(6, 1, 1)  # the means of the channels differ more than their entries
    expected = (features - teacher).square().mean() / teacher.var((0, 2, 3), correction=0).mean()
    maps = [features], [teacher]
    tokens = [features.flatten(2).mT], [teacher.flatten(2).mT]
    last = [features.permute(0, 2, 3, 1)], [teacher.permute(0, 2, 3, 1)]
    for loss in (feature_distillation(*maps), feature_distillation(*tokens)):
        assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    assert feature_distillation(*last, channels_last=True).item() == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("loss", [embedding_distillation, similarity_distillation])
def test_gradients_are_those_of_finite_differences(loss) -> None:
    embeddings, teacher = batch()
    assert torch.autograd.gradcheck(lambda x: loss(x, teacher), [embeddings.requires_grad_()])


@pytest.mark.parametrize(
    ("loss", "change", "message"),
    [
        (embedding_distillation, lambda x, t: (x, t[:, :4]), r"of shape \(6, 5\) and the teacher's of \(6, 4\)"),
        (similarity_distillation, lambda x, t: (x, t[:5]), "6 embeddings and 5 of the teacher"),
        (similarity_distillation, lambda x, t: (x, t.int()), r"teacher: expected floating-point \(B, D\), found"),
        (similarity_distillation, lambda x, t: (x[:0], t[:0]), "the batch is empty"),
        (embedding_distillation, lambda x, t: (x[:0], t[:0]), "the batch is empty"),
        (feature_distillation, lambda x, t: (x, t), "expected a list of tensors each, one per layer, found a tensor"),
        (similarity_distillation, lambda x, t: (x, t, 0.0), "temperature is 0.0: use a positive number"),
    ],
)
def test_invalid_inputs_are_named(loss, change, message: str) -> None:
    with pytest.raises(InputError, match=message):
        loss(*change(*batch()))
