"""Masks that close channels: what they reach, what they leave alone."""

import copy

import pytest
import timm
import torch
from torch import nn

from hgsl.sparsity import Masks, sparsify
from hgsl.sparsity.soft_mask import ChannelMask, SoftMask

X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(3))


class Residual(nn.Module):
    """stem -> [wide -> depthwise -> narrow] + stem -> head, with a bias everywhere, as in a MobileNet."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)
        self.wide, self.wide_norm = nn.Conv2d(6, 12, 1), nn.BatchNorm2d(12)
        self.depthwise, self.depthwise_norm = nn.Conv2d(12, 12, 3, padding=1, groups=12), nn.BatchNorm2d(12)
        self.narrow, self.narrow_norm = nn.Conv2d(12, 6, 1), nn.BatchNorm2d(6)
        self.hidden, self.head = nn.Linear(6, 10), nn.Linear(10, 4)

    def features(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        stem = self.stem_norm(self.stem(x)).relu()
        wide = self.wide_norm(self.wide(stem)).relu()
        deep = self.depthwise_norm(self.depthwise(wide)).relu()
        out = stem + self.narrow_norm(self.narrow(deep))
        return {"stem": stem, "wide": wide, "deep": deep, "out": out, "hidden": self.hidden(out.mean((2, 3))).relu()}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(x)["hidden"])


def trained() -> Residual:
    torch.manual_seed(0)
    net = Residual()
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.normal_(part.weight)
            nn.init.normal_(part.bias)
            nn.init.normal_(part.running_mean)
            nn.init.uniform_(part.running_var, 0.5, 2.0)
    return net.eval()


def closing(masks: Masks, *groups: list[int]) -> None:
    for scores, closed in zip(masks.mask_parameters(), groups, strict=True):
        scores.data.fill_(1.0)
        scores.data[closed] = -1.0
    masks.ticket = True


def test_one_mask_a_group_and_one_score_a_channel() -> None:
    masked, masks = sparsify(trained(), granularity="channel", example=X)
    assert [tuple(scores.shape) for scores in masks.mask_parameters()] == [(6,), (12,), (10,)]
    assert set(masks.density_by_layer()) == {"stem", "wide", "depthwise", "narrow", "hidden"}
    assert sum(isinstance(part, SoftMask) for part in masked.modules()) == 3
    # Weight, bias, norm weight, norm bias: four tensors for each of four convolutions, two for the linear layer.
    assert sum(isinstance(part, ChannelMask) for part in masked.modules()) == 18


def test_a_closed_channel_is_zero_after_its_bias_and_its_norm() -> None:
    masked, masks = sparsify(trained(), granularity="channel", example=X)
    closing(masks, [0, 4], [1, 2, 3], [9])
    for image in (X, 100 * X, torch.zeros_like(X)):
        values = masked.features(image)
        for name, closed in {
            "stem": [0, 4],
            "wide": [1, 2, 3],
            "deep": [1, 2, 3],
            "out": [0, 4],
            "hidden": [9],
        }.items():
            zero = (values[name].transpose(0, 1).flatten(1) == 0).all(1)
            assert set(closed) <= set(zero.nonzero().flatten().tolist()), name


def test_soft_masks_scale_the_channel_after_the_norm() -> None:
    """With a norm in between, the mask acts once, on the affine: the norm cancels what it does to the filter."""
    net = trained().train()
    masked, masks = sparsify(net, granularity="channel", example=X)
    masks.mask_parameters()[0].data.copy_(torch.linspace(-2, 2, 6))
    factor = torch.sigmoid(torch.linspace(-2, 2, 6)) / 0.5
    expected = net.stem_norm(net.stem(X)) * factor[:, None, None]
    torch.testing.assert_close(masked.stem_norm(masked.stem(X)), expected, rtol=1e-3, atol=1e-3)


def test_density_penalty_and_gradients_count_weights() -> None:
    _, masks = sparsify(trained(), granularity="channel", example=X)
    closing(masks, [0, 4], [1, 2, 3], [9])
    # rows of: stem 27, narrow 12; wide 6, depthwise 9; hidden 6
    total = 6 * (27 + 12) + 12 * (6 + 9) + 10 * 6
    closed = 2 * 39 + 3 * 15 + 6
    assert masks.density() == pytest.approx(1 - closed / total)
    assert masks.density_by_layer()["stem"] == pytest.approx(4 / 6)
    assert masks.penalty().item() == pytest.approx(2.0 * (total - closed))
    masks.ticket = False
    masks.penalty().backward()
    slope = torch.sigmoid(torch.tensor(1.0)) * (1 - torch.sigmoid(torch.tensor(1.0))) / 0.5
    torch.testing.assert_close(masks.mask_parameters()[0].grad, torch.full((6,), 39.0) * slope)


def test_an_unselected_layer_keeps_its_whole_group_open() -> None:
    _, masks = sparsify(trained(), granularity="channel", exclude="narrow", example=X)
    assert set(masks.density_by_layer()) == {"wide", "depthwise", "hidden"}
    _, masks = sparsify(trained(), granularity="channel", include="hidden", example=X)
    assert set(masks.density_by_layer()) == {"hidden"}


@pytest.mark.parametrize(
    ("name", "masked_layers", "left_alone"),
    [
        # Under a LayerNorm and in attention heads every channel counts; the hidden layers of the MLPs are free.
        ("test_vit", {"blocks.0.mlp.fc1"}, {"patch_embed.proj", "blocks.0.attn.qkv", "blocks.0.mlp.fc2", "head"}),
        ("test_convnext", {"stages.0.blocks.0.mlp.fc1"}, {"stem.0", "stages.0.blocks.0.conv_dw", "head.fc"}),
        # The gate shares the channels it scales, but a zero before its sigmoid is no zero after it.
        ("test_efficientnet", {"blocks.3.0.conv_dw", "blocks.3.0.se.conv_reduce"}, {"blocks.3.0.se.conv_expand"}),
    ],
)
def test_what_is_masked_in_networks_of_timm(name: str, masked_layers: set[str], left_alone: set[str]) -> None:
    _, masks = sparsify(timm.create_model(name, num_classes=5), granularity="channel")
    layers = set(masks.density_by_layer())
    assert masked_layers <= layers
    assert not left_alone & layers


def test_channel_masks_survive_copies_state_dicts_and_devices() -> None:
    masked, masks = sparsify(trained(), 0.1, granularity="channel", example=X)
    for scores in masks.mask_parameters():
        scores.data.normal_()
    masks.temperature = 5.0
    names = [name for name in masked.state_dict() if name.endswith(".scores")]
    assert len(names) == 3, "each shared mask appears once"
    twin = copy.deepcopy(masked)
    assert torch.equal(twin(X), masked(X))
    Masks(twin).ticket = True
    assert not torch.equal(twin(X), masked(X))

    reloaded, _ = sparsify(trained(), granularity="channel", example=X)
    reloaded.load_state_dict(masked.state_dict())
    assert torch.equal(reloaded(X), masked(X))
    torch.testing.assert_close(copy.deepcopy(masked).double()(X.double()).float(), masked(X), rtol=1e-4, atol=1e-5)


def test_finalize_gives_the_plain_network() -> None:
    masked, masks = sparsify(trained(), 0.1, granularity="channel", example=X)
    closing(masks, [0], [1, 2, 3], [])
    plain = masks.finalize()
    assert list(plain.state_dict()) == list(Residual().state_dict())
    assert torch.equal(plain(X), masked(X))
    assert (plain.wide_norm.bias[[1, 2, 3]] == 0).all()
    assert (plain.wide.bias[[1, 2, 3]] == 0).all()
