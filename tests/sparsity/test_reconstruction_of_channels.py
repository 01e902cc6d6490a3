"""Removal of channels by reconstruction, against solutions written out."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hgsl.common.errors import InputError
from hgsl.sparsity import compact, sparsify
from hgsl.sparsity.masks import Masks
from hgsl.sparsity.reconstruction import reconstruct

X = [torch.randn(16, 3, 6, 6, generator=torch.Generator().manual_seed(seed)) for seed in range(4)]


class Net(nn.Module):
    """A layer of 8 channels of which the last 4 repeat the first 4, and a reader."""

    def __init__(self, kernel: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)
        self.reader = nn.Conv2d(8, 5, kernel, bias=False)
        self.first.weight.data[4:] = 2 * self.first.weight.data[:4]
        self.norm.running_var[4:] = 4.0

    def forward(self, x: Tensor) -> Tensor:
        return self.reader(self.norm(self.first(x)).relu())


def masked(net: nn.Module) -> tuple[nn.Module, Masks]:
    return sparsify(net.eval(), 10.0, granularity="channel", penalty="operations", example=X[0])


@pytest.mark.parametrize("kernel", [1, 2])
def test_repeated_channels_are_removed_without_a_change_of_the_output(kernel: int) -> None:
    net = Net(kernel)
    network, masks = masked(net)
    reconstruct(network, masks, X, 0.55)
    assert masks.mask_parameters()[0].gt(0).sum() == 4
    assert masks.mask_parameters()[0].view(2, 4).gt(0).sum(0).tolist() == [1] * 4, "one of each pair"
    small = compact(network, X[0])
    assert small.reader.in_channels == 4
    torch.testing.assert_close(small(X[0]), net(X[0]), atol=0.03, rtol=0.03)


def test_the_weights_are_those_of_least_squares_and_the_channel_the_least_missed() -> None:
    net = Net(1)
    torch.manual_seed(1)
    nn.init.normal_(net.first.weight)
    inputs = torch.cat(X)
    features = net.eval().norm(net.first(inputs)).relu().permute(0, 2, 3, 1).reshape(-1, 8).detach().double().numpy()
    target = features @ net.reader.weight.detach()[:, :, 0, 0].double().numpy().T
    errors = []
    for closed in range(8):
        others = np.delete(features, closed, axis=1)
        solution = np.linalg.lstsq(others, target, rcond=None)[0]
        errors.append(((others @ solution - target) ** 2).sum())
    network, masks = masked(net)
    reconstruct(network, masks, X, 0.9)  # one of eight channels is an eighth of the operations
    closed = masks.mask_parameters()[0].le(0).nonzero().flatten().tolist()
    assert closed == [int(np.argmin(errors))]
    fitted = network.reader.weight.detach()[:, :, 0, 0].double().numpy() @ features.T
    error = ((fitted.T - target) ** 2).sum()
    assert error == pytest.approx(min(errors), rel=0.02)


def test_the_layer_that_the_output_depends_on_least_loses_its_channels() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b = (nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 3, 1)) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            return 100 * self.a(x) + self.b(x)

    network, masks = masked(Sum())
    reconstruct(network, masks, X, 0.7)
    assert masks.density_by_layer() == {"a.0": 1.0, "b.0": 0.375}


def test_a_target_out_of_reach_is_an_error() -> None:
    network, masks = masked(Net(1))
    with pytest.raises(InputError, match=r"target share 0.1 cannot be reached: 0.125 is left"):
        reconstruct(network, masks, X, 0.1)
    with pytest.raises(InputError, match="reconstruct needs costs"):
        reconstruct(network, Masks(network), X, 0.5)


def test_channels_that_only_dead_units_read_are_closed_also_before_an_activation_in_place() -> None:
    torch.manual_seed(0)
    reader = nn.Conv2d(8, 12, 1)
    with torch.no_grad():  # the first 6 units, which are dead, read the first 4 channels, and the others the last 4
        reader.weight[:6, 4:], reader.weight[6:, :4], reader.bias[:6] = 0, 0, -1000
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), reader, nn.ReLU(inplace=True), nn.Conv2d(12, 3, 1))
    network, masks = masked(net)
    reconstruct(network, masks, X, 0.6)
    assert masks.mask_parameters()[0].gt(0).tolist() == [False] * 4 + [True] * 4


def test_no_batches_are_an_error() -> None:
    network, masks = masked(Net(1))
    with pytest.raises(InputError, match="batches has no inputs"):
        reconstruct(network, masks, [], 0.5)
