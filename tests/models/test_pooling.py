"""SCDA pooling against a slow reference, and the numbers of GeM."""

import math

import pytest
import torch

from hgsl.common.errors import InputError
from hgsl.models.pooling import GeMPool, SCDAPool


def scda(features: torch.Tensor) -> torch.Tensor:
    """Position by position, in float64: (B, C, h, w) -> (B, 2C)."""
    rows = []
    for image in features.double():
        positions = [image[:, y, x] for y in range(image.shape[1]) for x in range(image.shape[2])]
        mean = sum(float(position.sum()) for position in positions) / len(positions)
        selected = [position for position in positions if float(position.sum()) >= mean] or positions
        columns = list(zip(*(position.tolist() for position in selected), strict=True))
        rows.append([max(column) for column in columns] + [sum(column) / len(column) for column in columns])
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("shape", [(3, 4, 5, 7), (2, 6, 1, 1), (2, 3, 9, 1), (1, 1, 2, 2)])
def test_scda_is_max_and_mean_over_the_positions_above_the_mean(shape: tuple[int, ...]) -> None:
    features = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(SCDAPool()(features), scda(features).float())


@pytest.mark.parametrize("value", [0.1, 0.3, -0.7, 3.3, 0.0])
@pytest.mark.parametrize("shape", [(2, 1, 3, 3), (2, 8, 3, 3), (2, 3, 5, 5), (2, 8, 7, 7), (2, 3, 10, 10)])
def test_scda_of_a_constant_map_is_the_constant(value: float, shape: tuple[int, ...]) -> None:
    features = torch.full(shape, value, requires_grad=True)
    pooled = SCDAPool()(features)
    torch.testing.assert_close(pooled, torch.full((shape[0], 2 * shape[1]), value))
    pooled.sum().backward()
    assert features.grad is not None
    assert features.grad.isfinite().all()


@pytest.mark.parametrize("wrong", [0.0, -1.0, math.nan, math.inf])
def test_the_numbers_of_gem_are_positive_and_finite(wrong: float) -> None:
    for options in ({"p": wrong}, {"eps": wrong}):
        with pytest.raises(InputError, match=f"must be positive and finite, found .*{wrong}"):
            GeMPool(**options)
