"""Costs of layers as a function of channel masks, against compacted networks."""

from importlib import import_module

import pytest
import torch
from torch import nn

from hgsl.common.errors import InputError
from hgsl.sparsity import Masks, compact, sparsify
from hgsl.sparsity.benchmark import benchmark
from hgsl.sparsity.channels import latency
from hgsl.sparsity.channels.latency import seconds_of_layers

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def network() -> nn.Sequential:
    """Dense and depthwise convolutions, norms, and a head that stays."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.Conv2d(8, 12, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 5),
    ).eval()


def close(masks: Masks, closed: list[int]) -> None:
    for scores, count in zip(masks.mask_parameters(), closed, strict=True):
        scores.data[:count] = -1.0
    masks.ticket = True


@pytest.mark.parametrize("closed", [[3, 0], [0, 7], [5, 4]])
def test_the_share_is_that_of_the_compacted_network(closed: list[int]) -> None:
    net = network()
    masked, masks = sparsify(net, 1.0, granularity="channel", penalty="operations", example=X)
    close(masks, closed)
    rows = benchmark({"dense": net, "small": compact(masked, X)}, X, repeats=1)
    assert float(masks.share()) == pytest.approx(rows["small"]["flops"] / rows["dense"]["flops"], rel=1e-5)


def test_the_share_follows_the_masks_to_another_device() -> None:
    masked, masks = sparsify(network(), 1.0, granularity="channel", penalty="operations", example=X)
    masked.to("meta")
    assert masks.share().is_meta


def test_a_price_is_what_closing_the_channel_saves() -> None:
    _, masks = sparsify(network(), 2.0, granularity="channel", penalty="operations", example=X)
    masks.penalty().backward()
    gradients = [scores.grad[0].item() for scores in masks.mask_parameters()]
    first, second = 64 * (27 + 9 + 12), 64 * 8 + 5  # rows, and the columns of the layers that read them
    assert gradients[0] / gradients[1] == pytest.approx(first / second, rel=1e-5)


def test_the_penalty_of_time_counts_the_measured_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {"0.weight": 4.0, "1.weight": 1.0, "3.weight": 2.0, "4.weight": 2.0}
    module = import_module("hgsl.sparsity.sparsify")  # the package has a function of the same name
    monkeypatch.setattr(module, "seconds_of_layers", lambda model, example: (seconds, 10.0))
    _, masks = sparsify(network(), 1.0, granularity="channel", penalty="time", example=X)
    assert float(masks.penalty()) == pytest.approx(sum(row["weights"] for row in masks.layers()), rel=1e-5)
    close(masks, [4, 6])  # half of both: convolution, norm, depthwise; the pointwise one by both sides
    assert float(masks.share()) == pytest.approx(0.1 + 0.4 / 2 + 0.1 / 2 + 0.2 / 2 + 0.2 / 4)


def test_the_share_of_weight_masks_is_that_of_the_penalty() -> None:
    _, masks = sparsify(network(), 1.0, penalty="operations", example=X)
    names = [row["layer"] for row in masks.layers()]
    masks.mask_parameters()[names.index("0")].data.fill_(-1.0)
    with pytest.warns(UserWarning, match="closes these layers fully: 0"):
        masks.ticket = True
    operations = {"0": 64 * 27 * 8, "3": 64 * 9 * 8, "4": 64 * 96, "8": 60}
    assert float(masks.share()) == pytest.approx(1 - operations["0"] / sum(operations.values()), rel=1e-5)


def test_every_call_of_a_layer_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(10_000))
    monkeypatch.setattr(latency.time, "perf_counter", lambda: float(next(clock)))
    layer = nn.Conv2d(3, 3, 1)
    seconds, total = seconds_of_layers(nn.Sequential(layer, nn.ReLU(), layer, nn.BatchNorm2d(3)), X)
    assert seconds == {"0.weight": 2.0, "3.weight": 1.0}
    assert total == 4.0, "those of the activation too"


def test_the_penalty_of_time_is_for_channels() -> None:
    with pytest.raises(InputError, match="penalty='time' needs granularity='channel'"):
        sparsify(network(), penalty="time", example=X)
