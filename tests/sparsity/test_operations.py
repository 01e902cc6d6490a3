"""The penalty on multiplications, against counts by hand."""

import pytest
import torch
from torch import nn

from hgsl.common.errors import InputError
from hgsl.sparsity import sparsify
from hgsl.sparsity.operations import uses_of_weights

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """8 x 8 and 4 x 4 pixels, then one vector."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.Conv2d(4, 6, 3, 2, padding=1)
        self.head = nn.Linear(6, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.second(self.first(x).relu()).relu().mean((2, 3)))


def test_a_weight_is_used_once_per_output_pixel() -> None:
    net = Net().train()
    net.second.eval()
    counts = {"first.weight": 64, "second.weight": 16, "head.weight": 1}
    assert uses_of_weights(net, X, list(counts)) == counts
    assert net.training
    assert not net.second.training, "a frozen layer stays in evaluation mode"
    assert not net.first._forward_hooks


def test_a_layer_that_is_called_twice_counts_twice() -> None:
    layer = nn.Linear(3, 3)
    assert uses_of_weights(nn.Sequential(layer, layer), torch.ones(7, 3), ["0.weight"]) == {"0.weight": 2}


def test_prices_are_proportional_to_operations() -> None:
    weights = {"first": 4 * 27, "second": 6 * 36, "head": 30}
    operations = {"first": 4 * 27 * 64, "second": 6 * 36 * 16, "head": 30}
    _, masks = sparsify(Net(), granularity="weight", example=X, penalty="operations")
    names = list(masks.density_by_layer())
    total = sum(weights[name] for name in names)
    assert masks.penalty().item() == pytest.approx(total, rel=1e-6)  # every mask is one at the start

    for i, scores in enumerate(masks.mask_parameters()):
        scores.data.fill_(-1.0 if i == names.index("first") else 1.0)
    with pytest.warns(UserWarning, match="first"):
        masks.ticket = True
    all_operations = sum(operations[name] for name in names)
    expected = total * (all_operations - operations["first"]) / all_operations
    assert masks.penalty().item() == pytest.approx(expected * 2, rel=1e-6)  # an open ticket mask is 1 / sigmoid(0) = 2
    assert masks.density() == pytest.approx((total - weights["first"]) / total)  # density still counts weights


def test_gradients_are_proportional_to_prices() -> None:
    _, masks = sparsify(Net(), granularity="weight", penalty="operations", example=X)
    masks.penalty().backward()
    first, second, _ = (scores.grad.flatten()[0] for scores in masks.mask_parameters())
    assert (first / second).item() == pytest.approx(4.0)


def test_a_weight_that_is_read_outside_its_layer_is_refused() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.attention(x, x, x)[0]

    net = Attention()
    with pytest.raises(InputError, match=r"cannot count the uses of attention.in_proj_weight"):
        sparsify(net, penalty="operations", example=torch.ones(2, 3, 4), inplace=True)
    assert list(net.state_dict()) == list(Attention().state_dict()), "a refused network is unchanged"


def test_a_layer_that_is_never_called_costs_nothing() -> None:
    net = Net()
    net.unused = nn.Linear(6, 6)
    _, masks = sparsify(net, penalty="operations", example=X)
    masks.penalty().backward()
    scores = dict(zip(masks.density_by_layer(), masks.mask_parameters(), strict=True))
    assert not scores["unused"].grad.any()
    assert (scores["head"].grad > 0).all()
    with pytest.raises(InputError, match="uses none of the masked weights"):
        sparsify(net, penalty="operations", include="unused", example=X)


def test_the_price_of_a_shared_weight_is_that_of_all_its_layers() -> None:
    net = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1, stride=2), nn.Conv2d(3, 3, 1))
    net[1].weight = net[0].weight
    _, masks = sparsify(net, penalty="operations", example=X)
    masks.penalty().backward()
    shared, last = (scores.grad.flatten()[0] for scores in masks.mask_parameters())
    assert (shared / last).item() == pytest.approx((64 + 16) / 16)


def test_a_transposed_convolution_uses_its_weight_once_per_input_pixel() -> None:
    net = nn.Sequential(nn.ConvTranspose2d(3, 4, 2, stride=2), nn.Conv2d(4, 2, 1))
    assert uses_of_weights(net, X, ["0.weight", "1.weight"]) == {"0.weight": 8 * 8, "1.weight": 16 * 16}


def test_an_unknown_penalty_is_named() -> None:
    with pytest.raises(InputError, match="unknown penalty 'operation': did you mean 'operations'"):
        sparsify(Net(), penalty="operation", example=X)  # type: ignore[arg-type]
