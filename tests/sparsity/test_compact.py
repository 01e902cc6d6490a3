"""Compaction: the output is unchanged, all closed channels are removed, and no other."""

import copy
from collections.abc import Callable

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from hgsl.common.errors import InputError
from hgsl.models import create_embedder
from hgsl.models.resnet_cifar import resnet20
from hgsl.sparsity import Masks, compact, sparsify


def calibrate(model: nn.Module, x: Tensor) -> nn.Module:
    """Sets the running statistics of the norms from random inputs shaped like ``x``."""
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = 1.0
    with torch.no_grad():
        model.train()(torch.randn(4 * len(x), *x.shape[1:]))
    return model.eval()


def randomize_norms(model: nn.Module) -> nn.Module:
    """Draws random weights and biases for the norms, which some networks initialize to zero."""
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias, 0.0, 0.3)
    return model


def ticket(model: nn.Module, x: Tensor) -> tuple[nn.Module, Masks]:
    """Returns the masked model with about half of its channels closed."""
    masked, masks = sparsify(randomize_norms(model), 0.1, granularity="channel", example=x)
    for scores in masks.mask_parameters():
        scores.data.normal_()
    masks.ticket = True
    return calibrate(masked, x), masks


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def timm_model(name: str, **options: object) -> Callable[[], nn.Module]:
    return lambda: timm.create_model(name, num_classes=10, **options)


def torchvision_model(name: str, **options: object) -> Callable[[], nn.Module]:
    return lambda: torchvision.models.get_model(name, weights=None, num_classes=10, **options)


BLOCKS = [[1, 16, 1, 1], [6, 24, 2, 2], [6, 32, 2, 2], [6, 64, 1, 2]]  # expansion, channels, repeats, stride

NETWORKS = [  # builder, image size, upper bound of the remaining share of parameters (density squared at best)
    pytest.param(resnet20, 32, 0.35, id="resnet20"),
    pytest.param(timm_model("test_resnet"), 64, 0.40, id="test_resnet"),
    pytest.param(timm_model("test_efficientnet"), 64, 0.40, id="test_efficientnet", marks=pytest.mark.slow),
    pytest.param(timm_model("test_vit"), 160, 0.90, id="test_vit", marks=pytest.mark.slow),
    *(
        pytest.param(build, 96, share, id=name, marks=pytest.mark.slow)
        for name, build, share in [
            ("resnet18", timm_model("resnet18", layers=(1, 1, 1, 1)), 0.35),
            ("test_convnext", timm_model("test_convnext"), 0.90),
            ("tf_efficientnet_lite0", timm_model("tf_efficientnet_lite0"), 0.35),
            ("mobilenetv3_large_100", timm_model("mobilenetv3_large_100"), 0.40),
            ("resnetv2_50", timm_model("resnetv2_50", layers=(2, 1, 1, 1)), 0.35),
            ("regnety_002", timm_model("regnety_002"), 0.80),
            ("densenet", timm_model("densenet121", block_config=(2, 3, 3, 2)), 0.35),
            ("torchvision mobilenet_v3_small", torchvision_model("mobilenet_v3_small"), 0.60),
            ("torchvision mobilenet_v2", torchvision_model("mobilenet_v2", inverted_residual_setting=BLOCKS), 0.45),
            ("torchvision shufflenet", torchvision_model("shufflenet_v2_x0_5"), 0.80),
        ]
    ),
]


@pytest.mark.parametrize(("build", "size", "share"), NETWORKS)
def test_closed_channels_are_removed_and_the_output_is_unchanged(
    build: Callable[[], nn.Module], size: int, share: float
) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, size, size)
    model = build()
    masked, masks = ticket(model, x)
    small = compact(masked, x)
    with torch.no_grad():
        expected, output = masked(x), small(x)
        expected64, output64 = masks.finalize().double()(x.double()), copy.deepcopy(small).double()(x.double())
    assert expected.std() > 0
    assert (output - expected).abs().max() <= 1e-5 * max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(output64, expected64, rtol=1e-9, atol=1e-9)

    assert parameters(small) <= share * parameters(model)
    assert list(small.state_dict()) == list(model.state_dict())
    assert not any(hasattr(part, "parametrizations") for part in small.modules())
    for name, part in small.named_modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            assert str(part.weight.shape[0]) in repr(part), f"repr of {name}"
            assert type(part) is type(model.get_submodule(name))
    small.train()(x).square().mean().backward()


class Mixed(nn.Module):
    """stem + residual branch -> head; the branch ends in a norm, the stem does not."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 5, 3, padding=1)
        self.wide, self.norm = nn.Conv2d(5, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.narrow = nn.Conv2d(8, 5, 1)
        self.head = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        return self.head((x + self.narrow(self.norm(self.wide(x)).relu())).mean((2, 3)))


@torch.no_grad()
def close(layer: nn.Module, *channels: int) -> None:
    for channel in channels:
        for tensor in layer.parameters():
            tensor[channel] = 0.0


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(layer.weight.shape) for name, layer in model.named_children()}


X = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def mixed() -> Mixed:
    torch.manual_seed(0)
    net = Mixed()
    calibrate(randomize_norms(net), X)
    return net


def test_a_zero_filter_before_a_norm_is_a_constant_and_stays(mixed: Mixed) -> None:
    close(mixed.wide, 0, 1)
    assert shapes(compact(mixed, X)) == shapes(mixed)
    close(mixed.norm, 1)
    assert compact(mixed, X).wide.weight.shape[0] == 7


def test_a_zero_filter_before_a_norm_is_removed_only_if_the_mean_is_zero(mixed: Mixed) -> None:
    close(mixed.wide, 0, 1)
    mixed.norm.bias.data[:2] = 0.0
    mixed.norm.running_mean[:2] = torch.tensor([0.0, -0.5])
    small = compact(mixed, X)
    assert small.wide.weight.shape[0] == 7, "0 - mean is a constant that reaches the head"
    torch.testing.assert_close(small(X), mixed(X), rtol=1e-5, atol=1e-5)


def test_almost_zero_is_not_zero(mixed: Mixed) -> None:
    close(mixed.norm, 1, 2)
    mixed.norm.bias.data[2] = 1e-30
    assert compact(mixed, X).wide.weight.shape[0] == 7


def test_a_channel_of_a_residual_sum_is_removed_only_if_zero_in_both_branches(mixed: Mixed) -> None:
    close(mixed.stem, 3)
    assert compact(mixed, X).stem.weight.shape[0] == 5
    close(mixed.narrow, 3)
    small = compact(mixed, X)
    assert shapes(small)["stem"] == (4, 3, 3, 3)
    assert shapes(small)["wide"] == (8, 4, 3, 3)
    assert shapes(small)["head"] == (4, 4)
    torch.testing.assert_close(small(X), mixed(X), rtol=1e-5, atol=1e-5)


def test_a_channel_without_effect_is_removed(mixed: Mixed) -> None:
    mixed.narrow.weight.data[:, 6] = 0.0
    small = compact(mixed, X)
    assert shapes(small)["wide"] == (7, 5, 3, 3)
    assert small.norm.num_features == 7
    torch.testing.assert_close(small(X), mixed(X), rtol=1e-5, atol=1e-5)


def test_single_zero_weights_remove_no_channel(mixed: Mixed) -> None:
    _, masks = sparsify(mixed, 0.0)
    for scores in masks.mask_parameters():
        scores.data.normal_()
    masks.ticket = True
    assert shapes(compact(masks.module, X)) == shapes(mixed)


def test_a_fully_closed_layer_keeps_one_channel_and_is_named_in_a_warning(mixed: Mixed) -> None:
    close(mixed.norm, *range(8))
    with pytest.warns(UserWarning, match=r"wide\.weight is closed fully"):
        small = compact(mixed, X)
    assert shapes(small)["wide"] == (1, 5, 3, 3)
    torch.testing.assert_close(small(X), mixed(X), rtol=1e-5, atol=1e-5)


def test_nothing_under_a_layer_norm_is_removed() -> None:
    net = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))
    close(net[0], 2)
    close(net[2], 2)
    small = compact(net, torch.randn(2, 4))
    assert [tuple(small[i].weight.shape) for i in (0, 2, 4)] == [(6, 4), (5, 6), (3, 5)]


def test_shared_layers_and_concatenations() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.shared, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            first = self.shared(self.stem(x).relu()).relu()
            second = self.shared(first).relu()
            return self.head(torch.cat([first.amax((2, 3)), second.mean((2, 3))], 1))

    torch.manual_seed(0)
    net = Twice()
    close(net.stem, 1)
    assert compact(net, X).shared.weight.shape == (4, 4, 3, 3), "channel 1 is nonzero after the second call"
    close(net.shared, 1)
    small = compact(net, X)
    assert small.shared.weight.shape == (3, 3, 3, 3)
    assert small.head.weight.shape == (2, 6)
    torch.testing.assert_close(small(X), net(X), rtol=1e-5, atol=1e-5)


def test_a_forward_with_a_literal_channel_count_is_refused() -> None:
    class Literal(Mixed):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.stem(x).view(2, 5, -1).mean(2))

    net = Literal()
    close(net.stem, 1)
    with pytest.raises(InputError, match=r"Literal fails without its closed channels \(.*exclude"):
        compact(net, X)


def test_a_forward_that_requires_half_precision_is_refused_by_name() -> None:
    class Half(Mixed):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.stem(x).relu().half().mean((2, 3)))

    with pytest.raises(InputError, match="Half runs neither in float64 nor in float32"):
        compact(Half().half(), X)


def test_an_assertion_about_a_channel_count_is_refused_by_name() -> None:
    class Asserts(Mixed):
        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x).relu()
            assert x.shape[1] == 5, "five channels"
            return self.head(x.mean((2, 3)))

    with pytest.raises(InputError, match=r"channels of stem cannot be removed: .*five channels"):
        sparsify(Asserts(), granularity="channel", example=X)


def test_soft_masks_are_refused() -> None:
    masked, _ = sparsify(Mixed())
    with pytest.raises(InputError, match=r"these masks are soft: set masks\.ticket = True"):
        compact(masked, X)


@pytest.mark.slow
def test_the_default_example_has_the_image_size_of_the_model() -> None:
    masked, _ = ticket(timm.create_model("test_resnet", num_classes=3), torch.randn(2, 3, 64, 64))
    assert parameters(compact(masked)) < parameters(masked)


def test_a_forward_may_cast_and_return_nested_outputs() -> None:
    class Casts(Mixed):
        def forward(self, x: Tensor) -> dict[str, object]:  # type: ignore[override]
            x = self.stem(x).float().relu().mean((2, 3))
            return {"logits": self.head(x), "sizes": [self.head(x).sum(), 3]}

    net = Casts().eval()
    close(net.stem, 1)
    small = compact(net, X)
    assert small.stem.weight.shape[0] == 4
    torch.testing.assert_close(small(X), net(X), rtol=1e-5, atol=1e-5)


def test_a_changed_output_is_refused_even_if_it_is_nan() -> None:
    class Counts(Mixed):
        worst = 0.0

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
            y = super().forward(x)
            return y, y if self.stem.weight.shape[0] == 5 else y + self.worst

    for worst, message in ((1.0, "output of Counts is off by"), (float("nan"), "output of Counts is off by nan")):
        net = Counts().eval()
        net.worst = worst
        for layer in (net.stem, net.narrow):
            close(layer, 3)
        with pytest.raises(InputError, match=message):
            compact(net, X)
    net = Counts().eval()
    net.head.bias.data[0] = float("inf")
    with pytest.raises(InputError, match="not finite for this example"):
        compact(net, X)


@pytest.mark.slow
@pytest.mark.parametrize("pooling", ["maxavg", "avg"])
def test_the_last_features_of_an_embedder_are_removed_under_its_projection(pooling: str) -> None:
    torch.manual_seed(0)
    model = create_embedder("test_resnet", pooling, 6, weights="none", image_size=32).eval()
    images = torch.randn(2, 3, 32, 32)
    masked, masks = sparsify(model, granularity="channel", example=images)
    for scores in masks.mask_parameters():
        scores.data.copy_(torch.rand(scores.shape) - 0.3)
    masks.ticket = True
    small = compact(masked, images)
    assert small.projection.in_features < model.projection.in_features
    torch.testing.assert_close(small(images), masked(images))
