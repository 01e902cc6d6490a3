"""Removal of weights by reconstruction, against regressions written out."""

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hgsl.common.errors import InputError
from hgsl.sparsity import reconstruct, sparsify
from hgsl.sparsity.reconstruction.inputs import RIDGE, close_down_to

GENERATOR = torch.Generator().manual_seed(0)
MIXING = torch.randn(6, 6, generator=GENERATOR)
BATCHES = [torch.randn(64, 6, generator=GENERATOR) @ MIXING for _ in range(3)]  # correlated inputs


def linear(outputs: int, seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(6, outputs)


def moments_of(x: np.ndarray) -> np.ndarray:
    moments = x.T @ x / len(x)
    return moments + RIDGE * np.diag(moments).mean() * np.eye(len(moments))


def test_later_weights_take_over_by_regression_and_the_least_missed_are_removed() -> None:
    layer = linear(4)
    network, masks = sparsify(layer, 10.0)
    reconstruct(network, masks, BATCHES, 0.5)
    closed = masks.mask_parameters()[0].le(0).numpy()
    assert closed.sum() == 12

    moments, weight = moments_of(torch.cat(BATCHES).double().numpy()), layer.weight.detach().double().numpy().copy()
    changes = np.zeros_like(weight)
    for column in range(6):
        later = np.arange(column + 1, 6)
        regression = np.linalg.solve(moments[np.ix_(later, later)], moments[later, column])
        rest = moments[column, column] - moments[column, later] @ regression
        changes[:, column] = weight[:, column] ** 2 * rest
        taken = weight[:, column] * closed[:, column]
        weight[:, later] += taken[:, None] * regression
        weight[:, column] -= taken
    np.testing.assert_allclose(masks.finalize().weight.detach().numpy(), weight, rtol=1e-3, atol=1e-5)
    # The gains of four outputs of a linear network come from random directions, and differ by a factor of a few.
    for row in range(4):
        if closed[row].any() and not closed[row].all():
            assert changes[row][closed[row]].max() < changes[row][~closed[row]].min()


def test_a_repeated_input_is_removed_without_a_change_of_the_output() -> None:
    layer = linear(5)
    repeated = [torch.cat([batch[:, :3], batch[:, :3]], 1) for batch in BATCHES]
    network, masks = sparsify(layer, 10.0)
    reconstruct(network, masks, repeated, 0.5)
    assert masks.mask_parameters()[0].le(0)[:, :3].all()
    expected = layer(repeated[0])
    torch.testing.assert_close(network(repeated[0]), expected, atol=0.01, rtol=0.01)


def test_the_output_changes_less_than_by_the_smallest_weights() -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU(), nn.Conv2d(32, 8, 1)).eval()
    smooth = torch.nn.functional.avg_pool2d(torch.randn(24, 3, 20, 20, generator=GENERATOR), 5, 1)
    batches, unseen = list(smooth[:16].split(8)), smooth[16:]
    network, masks = sparsify(layers, 10.0)
    reconstruct(network, masks, batches, 0.5)
    assert 0.499 < masks.density() <= 0.5
    smallest, other_masks = sparsify(layers, 10.0)
    for module, scores in zip((layers[0], layers[2], layers[4]), other_masks.mask_parameters(), strict=True):
        size = module.weight.abs()
        scores.data.copy_(torch.where(size < size.quantile(0.5), -1.0, 1.0))
    other_masks.ticket = True

    def error(other: nn.Module) -> float:
        with torch.no_grad():
            return float((other(unseen) - layers(unseen)).square().mean() / layers(unseen).var())

    assert error(network) < 0.2 * error(smallest)


class Mixed(nn.Module):
    """A depthwise layer, a shared layer and a layer that is not called, beside one that can be reconstructed."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.depthwise, self.pointwise = nn.Conv2d(6, 6, 1, groups=6), nn.Conv2d(6, 6, 1)
        self.shared, self.unused = nn.Linear(6, 6), nn.Linear(6, 6)
        self.again = nn.Linear(6, 6)
        self.again.weight = self.shared.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.pointwise(self.depthwise(x[:, :, None, None]))[:, :, 0, 0]
        return self.again(self.shared(x).relu())


def test_other_layers_stay_as_they_are() -> None:
    plain = Mixed().eval()
    network, masks = sparsify(plain, 10.0)
    reconstruct(network, masks, BATCHES, 0.9)
    density = masks.density_by_layer()
    assert density.pop("pointwise") < 0.75
    assert set(density.values()) == {1.0}
    with pytest.raises(InputError, match=r"target share 0.5 cannot be reached: 0.684 is left"):
        reconstruct(*sparsify(plain, 10.0), BATCHES, 0.5)  # 36 of 114 weights can be closed


def test_weights_that_cost_more_are_removed_first() -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 27)
    ).eval()
    images = torch.randn(16, 3, 12, 12, generator=GENERATOR)
    densities = {}
    for penalty in ("weights", "operations"):
        network, masks = sparsify(layers, 10.0, penalty=penalty, example=images[:1])
        reconstruct(network, masks, [images], 0.6)
        assert float(masks.share()) <= 0.6
        densities[penalty] = masks.density_by_layer()
    assert densities["operations"]["0"] < densities["weights"]["0"]
    assert densities["operations"]["4"] > 0.9, "a hundredth of the operations"


@pytest.mark.parametrize(
    ("share_of", "reached", "count"),
    [
        (lambda limit: 1 / (1 + limit), 1.0, 2),  # ends at the target
        (lambda limit: 0.2 if limit >= 3 else 0.9, 3.0, None),  # jumps over it
        (lambda limit: 0.5, math.inf, 1),  # is at it when all is closed
    ],
)
def test_the_smallest_limit_that_reaches_the_target_is_the_last_and_none_is_computed_again_at_once(
    share_of: Callable[[float], float], reached: float, count: int | None
) -> None:
    limits: list[float] = []

    def share_at(limit: float) -> float:
        limits.append(limit)
        return share_of(limit)

    close_down_to(0.5, share_at)
    assert limits[-1] == min(limit for limit in limits if limit >= reached) == pytest.approx(reached)
    assert all(limit != following for limit, following in pairwise(limits))
    assert count in (None, len(limits))


@pytest.mark.parametrize("target", [0.0, -0.1, 1.5, float("nan"), "half", True])
def test_a_target_that_is_no_share_is_an_error(target: float) -> None:
    with pytest.raises(InputError, match=r"target is .*: expected a share above 0 and at most 1"):
        reconstruct(*sparsify(linear(4), 10.0), BATCHES, target)


def test_one_tensor_is_no_list_of_batches() -> None:
    masked, masks = sparsify(linear(4), 10.0)
    with pytest.raises(InputError, match="batches is one tensor: expected several"):
        reconstruct(masked, masks, BATCHES[0], 0.5)
