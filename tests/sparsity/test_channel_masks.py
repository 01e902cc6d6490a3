"""Channel masks: the tensors that they multiply, their counts, and the channels that are never masked."""

import copy
from collections.abc import Callable

import pytest
import timm
import torch
import torchvision
from torch import nn

from hgsl.common.errors import InputError
from hgsl.sparsity import Masks, compact, sparsify
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


def residual_network() -> Residual:
    torch.manual_seed(0)
    net = Residual()
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.normal_(part.weight)
            nn.init.normal_(part.bias)
            nn.init.normal_(part.running_mean)
            nn.init.uniform_(part.running_var, 0.5, 2.0)
    return net.eval()


def close_channels(masks: Masks, *groups: list[int]) -> None:
    for scores, closed in zip(masks.mask_parameters(), groups, strict=True):
        scores.data.fill_(1.0)
        scores.data[closed] = -1.0
    masks.ticket = True


def test_each_group_has_one_mask_and_each_channel_one_score() -> None:
    masked, masks = sparsify(residual_network(), granularity="channel", example=X)
    assert [tuple(scores.shape) for scores in masks.mask_parameters()] == [(6,), (12,), (10,)]
    assert set(masks.density_by_layer()) == {"stem", "wide", "depthwise", "narrow", "hidden"}
    assert sum(isinstance(part, SoftMask) for part in masked.modules()) == 3
    # Weight, bias, norm weight and norm bias of four convolutions; weight and bias of the linear layer.
    assert sum(isinstance(part, ChannelMask) for part in masked.modules()) == 18


def test_a_closed_channel_is_zero_after_its_bias_and_its_norm() -> None:
    masked, masks = sparsify(residual_network(), granularity="channel", example=X)
    close_channels(masks, [0, 4], [1, 2, 3], [9])
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
    """The norm cancels the scale of the filter, so the mask acts once, through the affine of the norm."""
    net = residual_network().train()
    masked, masks = sparsify(net, granularity="channel", example=X)
    masks.mask_parameters()[0].data.copy_(torch.linspace(-2, 2, 6))
    factor = torch.sigmoid(torch.linspace(-2, 2, 6)) / 0.5
    expected = net.stem_norm(net.stem(X)) * factor[:, None, None]
    torch.testing.assert_close(masked.stem_norm(masked.stem(X)), expected, rtol=1e-3, atol=1e-3)


def test_density_penalty_and_gradients_count_weights() -> None:
    _, masks = sparsify(residual_network(), granularity="channel", example=X)
    close_channels(masks, [0, 4], [1, 2, 3], [9])
    # weights per channel: stem 27, narrow 12; wide 6, depthwise 9; hidden 6
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
    _, masks = sparsify(residual_network(), granularity="channel", exclude="narrow", example=X)
    assert set(masks.density_by_layer()) == {"wide", "depthwise", "hidden"}
    _, masks = sparsify(residual_network(), granularity="channel", include="hidden", example=X)
    assert set(masks.density_by_layer()) == {"hidden"}


@pytest.mark.parametrize(
    ("name", "masked_layers", "unmasked_layers"),
    [
        # Channels under a LayerNorm and in attention heads are pinned; those of the hidden layers of MLPs are not.
        ("test_vit", {"blocks.0.mlp.fc1"}, {"patch_embed.proj", "blocks.0.attn.qkv", "blocks.0.mlp.fc2", "head"}),
        ("test_convnext", {"stages.0.blocks.0.mlp.fc1"}, {"stem.0", "stages.0.blocks.0.conv_dw", "head.fc"}),
        # The gate is tied to the channels that it scales, but a zero before its sigmoid is one half after it.
        ("test_efficientnet", {"blocks.3.0.conv_dw", "blocks.3.0.se.conv_reduce"}, {"blocks.3.0.se.conv_expand"}),
    ],
)
def test_masked_layers_of_timm_networks(name: str, masked_layers: set[str], unmasked_layers: set[str]) -> None:
    _, masks = sparsify(timm.create_model(name, num_classes=5), granularity="channel")
    layers = set(masks.density_by_layer())
    assert masked_layers <= layers
    assert not unmasked_layers & layers


def test_channel_masks_survive_copies_state_dicts_and_devices() -> None:
    masked, masks = sparsify(residual_network(), 0.1, granularity="channel", example=X)
    for scores in masks.mask_parameters():
        scores.data.normal_()
    masks.temperature = 5.0
    names = [name for name in masked.state_dict() if name.endswith(".scores")]
    assert len(names) == 3, "each shared mask appears once"
    twin = copy.deepcopy(masked)
    assert torch.equal(twin(X), masked(X))
    Masks(twin).ticket = True
    assert not torch.equal(twin(X), masked(X))

    reloaded, _ = sparsify(residual_network(), granularity="channel", example=X)
    reloaded.load_state_dict(masked.state_dict())
    assert torch.equal(reloaded(X), masked(X))
    torch.testing.assert_close(copy.deepcopy(masked).double()(X.double()).float(), masked(X), rtol=1e-4, atol=1e-5)


def test_finalize_returns_the_plain_network() -> None:
    masked, masks = sparsify(residual_network(), 0.1, granularity="channel", example=X)
    close_channels(masks, [0], [1, 2, 3], [])
    plain = masks.finalize()
    assert list(plain.state_dict()) == list(Residual().state_dict())
    assert torch.equal(plain(X), masked(X))
    assert (plain.wide_norm.bias[[1, 2, 3]] == 0).all()
    assert (plain.wide.bias[[1, 2, 3]] == 0).all()


def build_network(parts: dict[str, nn.Module], forward: Callable[[nn.Module, torch.Tensor], torch.Tensor]) -> nn.Module:
    """Builds a network of named layers and a forward function."""

    class Net(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return forward(self, x)

    torch.manual_seed(0)
    net = Net()
    for name, part in parts.items():
        setattr(net, name, part)
    return net.eval()


def close_first_two(masks: Masks) -> None:
    for scores in masks.mask_parameters():
        scores.data.fill_(0.5)
        scores.data[:2] = -0.5
    masks.ticket = True


def test_a_shared_weight_is_closed_in_both_layers() -> None:
    stem, first, second = (nn.Conv2d(n, 8, 3, padding=1) for n in (3, 8, 8))
    second.weight = first.weight
    net = build_network(
        {"stem": stem, "first": first, "second": second, "head": nn.Linear(8, 2)},
        lambda n, x: n.head(n.second(n.first(n.stem(x).relu()).relu()).relu().mean((2, 3))),
    )
    masked, masks = sparsify(net, granularity="channel", example=X)
    assert set(masks.density_by_layer()) == {"stem", "first", "second"}
    assert masks.density() == 0.0
    close_first_two(masks)
    assert torch.equal(masks.finalize()(X), masked(X))
    small = compact(masked, X)
    assert small.first.weight is small.second.weight
    assert small.first.weight.shape == (6, 6, 3, 3)
    torch.testing.assert_close(small(X), masked(X), rtol=1e-5, atol=1e-6)


def test_a_norm_after_a_concatenation_has_the_masks_of_both_parts() -> None:
    parts = {"a": nn.Conv2d(3, 6, 3, padding=1), "b": nn.Conv2d(6, 4, 3, padding=1), "plain": nn.Conv2d(3, 2, 1)}
    net = build_network(
        {**parts, "norm": nn.BatchNorm2d(12), "head": nn.Linear(12, 3)},
        lambda n, x: n.head(n.norm(torch.cat([n.a(x).relu(), n.b(n.a(x).relu()), n.plain(x)], 1)).relu().mean((2, 3))),
    )
    for tensor in (net.norm.weight, net.norm.bias, net.norm.running_mean):
        nn.init.normal_(tensor)
    masked, masks = sparsify(net, granularity="channel", exclude="plain", example=X)
    assert [tuple(scores.shape) for scores in masks.mask_parameters()] == [(6,), (4,)]
    close_first_two(masks)
    plain = masks.finalize()
    assert [plain.norm.bias[i].item() == 0.0 for i in range(12)] == [i in (0, 1, 6, 7) for i in range(12)]
    assert torch.equal(plain.norm.weight[10:], net.norm.weight[10:]), "rows of an unmasked layer are unchanged"
    assert torch.equal(plain(X), masked(X))
    small = compact(masked, X)
    assert [small.get_submodule(name).weight.shape[0] for name in ("a", "b", "plain", "norm")] == [4, 2, 2, 8]
    torch.testing.assert_close(small(X), masked(X), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_every_closed_channel_of_a_densenet_is_removed() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 32, 32)
    net = torchvision.models.DenseNet(growth_rate=4, block_config=(2, 2), num_init_features=6, bn_size=2, num_classes=3)
    masked, masks = sparsify(net.eval(), granularity="channel", example=x)
    close_first_two(masks)
    small = compact(masked, x)
    for name, density in masks.density_by_layer().items():
        before, after = net.get_submodule(name).weight.shape[0], small.get_submodule(name).weight.shape[0]
        assert after == round(density * before), name
    assert set(masks.density_by_layer()) == {name for name, part in net.named_modules() if isinstance(part, nn.Conv2d)}


@pytest.mark.parametrize("case", ["recurrent", "tied embedding", "tied autoencoder"])
def test_channels_of_a_weight_with_a_second_use_stay(case: str) -> None:
    if case == "recurrent":  # from the input, whose channels are pinned
        net = build_network(
            {"loop": nn.Linear(8, 8), "hidden": nn.Linear(8, 6), "head": nn.Linear(6, 2)},
            lambda n, x: n.head(n.hidden(n.loop(n.loop(x).relu()).relu()).relu()),
        )
        x = torch.randn(2, 8)
    elif case == "tied embedding":
        table, head = nn.Embedding(20, 8), nn.Linear(8, 20, bias=False)
        head.weight = table.weight
        net = build_network(
            {"table": table, "hidden": nn.Linear(8, 16), "back": nn.Linear(16, 8), "head": head},
            lambda n, x: n.head(n.back(n.hidden(n.table(x)).relu())),
        )
        x = torch.randint(20, (2, 5))
    else:
        net = build_network(
            {"encode": nn.Linear(8, 16), "hidden": nn.Linear(16, 6), "back": nn.Linear(6, 16)},
            lambda n, x: nn.functional.linear(n.back(n.hidden(n.encode(x).relu()).relu()).relu(), n.encode.weight.t()),
        )
        x = torch.randn(2, 8)
    masked, masks = sparsify(net, granularity="channel", example=x)
    assert set(masks.density_by_layer()) == {"hidden"}
    close_first_two(masks)
    torch.testing.assert_close(compact(masked, x)(x), masked(x), rtol=1e-5, atol=1e-6)


def test_a_literal_channel_count_is_refused_before_the_search() -> None:
    net = build_network(
        {"first": nn.Conv2d(3, 4, 3), "second": nn.Conv2d(4, 5, 3), "head": nn.Linear(5 * 144, 2)},
        lambda n, x: n.head(n.second(n.first(x).relu()).relu().view(-1, 5 * 144)),
    )
    with pytest.raises(InputError, match=r"channels of second cannot be removed: .*invalid for input of size"):
        sparsify(net, granularity="channel", example=X, inplace=True)
    assert not any(hasattr(part, "parametrizations") for part in net.modules())
    _, masks = sparsify(net, granularity="channel", example=X, exclude="second")
    assert set(masks.density_by_layer()) == {"first"}


def test_the_sum_of_a_list_is_a_sum_of_channels() -> None:
    net = build_network(
        {"a": nn.Conv2d(3, 6, 1), "b": nn.Conv2d(3, 6, 1), "head": nn.Conv2d(6, 2, 1)},
        lambda n, x: n.head(sum([n.a(x), n.b(x)]).relu()),
    )
    masked, masks = sparsify(net, granularity="channel", example=X)
    assert set(masks.density_by_layer()) == {"a", "b"}
    close_first_two(masks)
    assert compact(masked, X).a.weight.shape[0] == 4


def test_examples_of_tokens_and_of_several_inputs() -> None:
    net = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    tokens = torch.randint(10, (2, 5))
    masked, masks = sparsify(net, granularity="channel", penalty="operations", example=tokens)
    assert set(masks.density_by_layer()) == {"1"}
    close_first_two(masks)
    assert compact(masked, tokens)[1].weight.shape == (6, 4)
    with pytest.raises(InputError, match="example is a tuple, expected the network's one input tensor"):
        sparsify(net, granularity="channel", example=(tokens, tokens))  # type: ignore[arg-type]
