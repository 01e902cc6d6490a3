"""Masks on networks of timm and torchvision and on hand-written ones; patterns, errors, compilation and autocast."""

import copy
from collections.abc import Callable

import pytest
import timm
import torch
import torchvision
from torch import nn

from hgsl.common.errors import InputError
from hgsl.sparsity import Masks, sparsify


class Attention(nn.Module):
    """A hand-written network with a fused projection, an embedding and a bare parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(1, 5, 8))
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.table
        return self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "test_resnet": (lambda: timm.create_model("test_resnet", num_classes=5), (2, 3, 64, 64)),
    "test_efficientnet": (lambda: timm.create_model("test_efficientnet", num_classes=5), (2, 3, 64, 64)),
    "test_convnext": (lambda: timm.create_model("test_convnext", num_classes=5), (2, 3, 64, 64)),
    "test_vit": (lambda: timm.create_model("test_vit", num_classes=5), (2, 3, 160, 160)),
    "tf_mobilenetv3 (Conv2dSame)": (lambda: timm.create_model("tf_mobilenetv3_small_minimal_100"), (2, 3, 65, 65)),
    "torchvision": (lambda: torchvision.models.shufflenet_v2_x0_5(num_classes=5), (2, 3, 64, 64)),
    "hand-written": (Attention, (2, 5, 8)),
}


@pytest.fixture(params=NETWORKS)
def network(request: pytest.FixtureRequest) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    build, shape = NETWORKS[request.param]
    return build().eval(), torch.randn(shape)


def test_any_network_can_be_masked_and_finalized(network: tuple[nn.Module, torch.Tensor]) -> None:
    model, x = network
    keys = list(model.state_dict())
    masked, masks = sparsify(model)
    assert list(model.state_dict()) == keys, "the original is unchanged"
    torch.testing.assert_close(masked(x), model(x), rtol=1e-5, atol=1e-6)

    weights = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear))
    weights += sum(m.in_proj_weight.numel() for m in model.modules() if isinstance(m, nn.MultiheadAttention))
    assert sum(scores.numel() for scores in masks.mask_parameters()) == weights

    (masked(x).square().mean() + 1e-8 * masks.penalty()).backward()
    assert all(scores.grad is not None and scores.grad.abs().sum() > 0 for scores in masks.mask_parameters())

    for scores in masks.mask_parameters():
        scores.data.normal_()
    masks.ticket = True
    plain = masks.finalize()
    assert list(plain.state_dict()) == keys
    with torch.no_grad():
        torch.testing.assert_close(plain(x), masked(x), rtol=1e-5, atol=1e-6)
    model.load_state_dict(plain.state_dict(), strict=True)


def test_inplace_changes_the_model_itself() -> None:
    model = nn.Linear(4, 3)
    masked, masks = sparsify(model, inplace=True)
    assert masked is model
    assert masks.density_by_layer() == {"": 0.0}
    with pytest.warns(UserWarning, match="closes these layers fully: weight"):
        masks.ticket = True


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        ((), "fc", 15),
        ("layer1", (), 2),
        ("layer2.*", "*.downsample.*", 2),
        (["conv1.*", "layer4.0.conv?"], (), 5),
        ("layer2.0.conv1", (), 1),
        ("layer2.0.conv1.weight", (), 1),
    ],
)
def test_patterns(include: str, exclude: str, expected: int) -> None:
    model = timm.create_model("test_resnet")
    _, masks = sparsify(model, include=include, exclude=exclude)
    assert len(masks.density_by_layer()) == expected


def test_a_pattern_can_name_any_parameter() -> None:
    _, masks = sparsify(Attention(), include=["table", "attention.in_proj_weight"])
    assert set(masks.density_by_layer()) == {"table", "attention.in_proj_weight"}
    assert list(masks.finalize().state_dict()) == list(Attention().state_dict())


def test_a_shared_weight_is_masked_in_all_its_layers_or_in_none() -> None:
    net = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 9, bias=False))
    net[2].weight, net[3].weight = net[1].weight, net[0].weight
    with pytest.raises(InputError, match=r"2\.weight and 1\.weight are one parameter: exclude both or neither"):
        sparsify(net, exclude="2")
    assert set(sparsify(net, exclude=["1", "2"])[1].density_by_layer()) == {"0", "3"}
    assert set(sparsify(net, exclude="3")[1].density_by_layer()) == {"1", "2"}
    masked, masks = sparsify(net, include=["2", "3"])
    for scores in masks.mask_parameters():
        scores.data.normal_()
    masks.ticket = True
    tokens = torch.arange(9)
    assert torch.equal(masks.finalize()(tokens), masked(tokens))


def test_a_norm_can_be_excluded_but_not_included() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    assert set(sparsify(net, exclude="1")[1].density_by_layer()) == {"0"}
    with pytest.raises(InputError, match="pattern '1' names a BatchNorm2d, which has no weight of two or more axes"):
        sparsify(net, include="1")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"include": "layer1.0.convv1"},
            r"layer pattern 'layer1.0.convv1' matches no layer.*did you mean layer1.0.conv1",
        ),
        ({"exclude": ["fcc"]}, r"'fcc' matches no layer.*fc"),
        ({"exclude": "*"}, "nothing left to mask: the patterns leave no layer"),
        ({"granularity": "filter"}, "unknown granularity 'filter'.*channel, weight"),
        ({"granularity": "channel", "include": "fc"}, "nothing left to mask: no channel"),
    ],
)
def test_errors(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        sparsify(timm.create_model("test_resnet", num_classes=5), **options)  # type: ignore[arg-type]


def test_arguments_of_another_type_are_named() -> None:
    with pytest.raises(InputError, match="model is of type str: expected a network"):
        sparsify("x")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="mask_initial_value is 'x': expected a number"):
        sparsify(nn.Linear(2, 2), "x")  # type: ignore[arg-type]
    for options in ({"exclude": 7}, {"include": [1]}):
        with pytest.raises(InputError, match=r"layer pattern \d: expected text, such as 'layer1\.\*'"):
            sparsify(nn.Linear(2, 2), **options)  # type: ignore[arg-type]


def test_a_masked_or_weightless_network_is_refused() -> None:
    masked, _ = sparsify(nn.Linear(3, 3))
    with pytest.raises(InputError, match="is masked already"):
        sparsify(masked)
    with pytest.raises(InputError, match="LayerNorm has no weight of two or more axes"):
        sparsify(nn.LayerNorm(4))


def test_an_example_that_does_not_fit_is_refused_with_a_way_out() -> None:
    with pytest.raises(InputError, match=r"cannot be traced with an input of shape \(2, 3, 224, 224\).*granularity"):
        sparsify(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)), granularity="channel")


@pytest.mark.parametrize("granularity", ["weight", "channel"])
def test_torch_compile_makes_one_graph_for_all_temperatures(granularity: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 16, 16)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 4, 1)
    )
    masked, masks = sparsify(model, 0.1, granularity=granularity, example=x)  # type: ignore[arg-type]
    for scores in masks.mask_parameters():
        scores.data.normal_()
    reference = copy.deepcopy(masked)
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., object]:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(masked, backend=backend, fullgraph=True)
    for temperature in (1.0, 5.0, 80.0):
        for controller in (masks, Masks(reference)):
            controller.temperature = temperature
        for part in (compiled, reference):
            part.zero_grad()
            part(x).square().mean().backward()
        for a, b in zip(masked.parameters(), reference.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad)
    assert len(graphs) == 1
    torch._dynamo.reset()


@pytest.mark.parametrize("granularity", ["weight", "channel"])
def test_autocast_masks_in_float32_and_convolves_in_bfloat16(granularity: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
    masked, masks = sparsify(net, granularity=granularity, example=x)  # type: ignore[arg-type]
    expected = masked(x)
    with torch.autocast("cpu", torch.bfloat16):
        output = masked(x)
        assert masked[0].weight.dtype == torch.float32
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output.float(), expected, rtol=0.05, atol=0.05)
    output.float().sum().backward()
    assert all(scores.grad is not None and scores.grad.dtype == torch.float32 for scores in masks.mask_parameters())


def test_masks_have_the_device_and_dtype_of_the_weights() -> None:
    model = nn.Linear(4, 3, device="meta", dtype=torch.float64)
    _, masks = sparsify(model, 0.1)
    (scores,) = masks.mask_parameters()
    assert scores.device.type == "meta"
    assert scores.dtype == torch.float64
    half = sparsify(nn.Linear(4, 3).half())[0]
    assert half.weight.dtype == torch.float16
