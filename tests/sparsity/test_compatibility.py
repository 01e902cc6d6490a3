"""Layer types: each is masked, finalized and compacted without a change of the output, or refused in one line."""

import copy
import io
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm

from hgsl.common.errors import InputError
from hgsl.sparsity import Masks, compact, sparsify

IMAGES = torch.randn(2, 3, 10, 10, generator=torch.Generator().manual_seed(0))
VECTORS = torch.randn(2, 8, generator=torch.Generator().manual_seed(1))
SEQUENCES = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(2))
TOKENS = torch.tensor([[1, 5, 2, 0], [3, 3, 8, 7]])
PHASE = nn.ParameterList([torch.tensor([0.5 + 1j])])


def network(forward: Callable[[Any, Tensor], Any], **layers: nn.Module) -> nn.Module:
    """Builds a network of named layers and a forward function."""

    class Net(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return forward(self, x)

    net = Net()
    for name, layer in layers.items():
        setattr(net, name, layer)
    for part in net.modules():
        if isinstance(part, nn.modules.batchnorm._NormBase) and part.running_mean is not None:
            nn.init.normal_(part.running_mean)
    return net.eval()


def pooled(forward: Callable[[Any, Tensor], Tensor], channels: int, **layers: nn.Module) -> nn.Module:
    """Builds a network whose linear head reads the mean over the pixels."""
    return network(lambda n, x: n.head(forward(n, x).mean((2, 3))), **layers, head=nn.Linear(channels, 4))


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).eval()


def conv(n: int, m: int, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(n, m, 3, **options)


def module_under_two_names(shared: nn.Module) -> nn.Module:
    def forward(n: Any, x: Tensor) -> Tensor:
        y: Tensor = n.again(n.shared(n.a(x).relu()).relu())
        return y.relu()

    return pooled(forward, 6, a=conv(3, 6), shared=shared, again=shared)


def self_attention(n: Any, x: Tensor) -> Tensor:
    y = n.a(x)
    attended: Tensor = n.b(y, y, y)[0]
    return attended


def ticket(net: nn.Module, x: Tensor, **options: Any) -> tuple[nn.Module, Masks]:
    """Masks a network, takes a training step's gradients, and closes about half of what is masked."""
    masked, masks = sparsify(net, 0.1, example=x, **options)
    torch.testing.assert_close(masked(x), net(x))
    masked(x).square().sum().backward()
    for scores in masks.mask_parameters():
        assert scores.grad is not None
        assert scores.grad.isfinite().all()
        scores.data.copy_(torch.randn(scores.shape, generator=torch.Generator().manual_seed(4)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about layers that are closed fully
        masks.ticket = True
    return masked, masks


CHANNELS: dict[str, tuple[Callable[[], nn.Module], Tensor, set[str]]] = {
    "constant_pad_nd with one": (
        lambda: pooled(
            lambda n, x: n.b(torch.constant_pad_nd(n.a(x), (1, 1), 1.0)).relu(), 5, a=conv(3, 6), b=conv(6, 5)
        ),
        IMAGES,
        {"b"},  # a closed channel of a is one at its border
    ),
    "constant_pad_nd with zero": (
        lambda: pooled(lambda n, x: n.b(torch.constant_pad_nd(n.a(x), (1, 1))).relu(), 5, a=conv(3, 6), b=conv(6, 5)),
        IMAGES,
        {"a", "b"},
    ),
    "padding modes": (
        lambda: pooled(
            lambda n, x: n.c(F.pad(n.b(n.a(x).relu()).relu(), (1, 1, 1, 1), "circular")).relu(),
            5,
            a=conv(3, 6, padding=1, padding_mode="reflect"),
            b=conv(6, 6, padding=1, padding_mode="replicate"),
            c=conv(6, 5),
        ),
        IMAGES,
        {"a", "b", "c"},
    ),
    "PReLU per channel and with one slope": (
        lambda: pooled(
            lambda n, x: n.q(n.b(n.p(n.norm(n.a(x))))),
            5,
            a=conv(3, 6),
            norm=nn.BatchNorm2d(6),
            p=nn.PReLU(6),
            b=conv(6, 5),
            q=nn.PReLU(),
        ),
        IMAGES,
        {"a", "b"},
    ),
    "batch norm without affine": (
        lambda: pooled(
            lambda n, x: n.b(n.norm(n.a(x))).relu(), 5, a=conv(3, 6), norm=nn.BatchNorm2d(6, affine=False), b=conv(6, 5)
        ),
        IMAGES,
        {"b"},  # the norm's mean shifts the channels of a
    ),
    "batch norm of computed parameters": (
        lambda: pooled(
            lambda n, x: n.b(F.batch_norm(n.a(x), n.norm.running_mean * 2, n.norm.running_var, n.norm.weight)).relu(),
            5,
            a=conv(3, 6),
            norm=nn.BatchNorm2d(6),
            b=conv(6, 5),
        ),
        IMAGES,
        {"b"},
    ),
    "norms over channels": (
        lambda: pooled(
            lambda n, x: n.c(n.instance(n.b(n.group(n.a(x)).relu())).relu()).relu(),
            5,
            a=conv(3, 6),
            group=nn.GroupNorm(2, 6),
            b=conv(6, 6),
            instance=nn.InstanceNorm2d(6, affine=True),
            c=conv(6, 5),
        ),
        IMAGES,
        {"c"},
    ),
    "transposed, grouped and shuffled": (
        lambda: pooled(
            lambda n, x: n.d(F.pixel_shuffle(n.c(n.b(n.a(x).relu()).relu()).relu(), 2)).relu(),
            5,
            a=conv(3, 6),
            b=nn.ConvTranspose2d(6, 8, 2),
            c=conv(8, 8, groups=2),
            d=conv(2, 5),
        ),
        IMAGES,
        {"d"},
    ),
    "module called under two names": (
        lambda: (
            lambda shared: pooled(
                lambda n, x: n.again(n.shared(n.a(x).relu()).relu()).relu(),
                6,
                a=conv(3, 6),
                shared=shared,
                again=shared,
            )
        )(conv(6, 6, padding=1)),
        IMAGES,
        {"a", "shared"},
    ),
    "functional use and a tensor concatenated with itself": (
        lambda: pooled(
            lambda n, x: n.b(torch.cat([F.conv2d(x, n.a.weight, n.a.bias)] * 2, 1).relu()).relu(),
            5,
            a=conv(3, 6),
            b=conv(12, 5),
        ),
        IMAGES,
        {"a", "b"},
    ),
    "layers around an LSTM": (
        lambda: network(
            lambda n, x: n.head(n.lstm(n.b(n.a(x).relu()))[0][:, -1]),
            a=nn.Linear(8, 10),
            b=nn.Linear(10, 6),
            lstm=nn.LSTM(6, 6, batch_first=True),
            head=nn.Linear(6, 3),
        ),
        SEQUENCES,
        {"a"},
    ),
    "transformer encoder": (
        lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval(),
        SEQUENCES,
        {"linear1"},
    ),
    "EmbeddingBag": (lambda: nn.Sequential(nn.EmbeddingBag(9, 8), *mlp()), TOKENS, {"1", "3"}),
    "complex parameter": (
        lambda: network(
            lambda n, x: n.b(n.a(x).relu()) * n.phase[0].exp().real, a=conv(3, 6), b=conv(6, 4), phase=PHASE
        ),
        IMAGES,
        {"a"},
    ),
}


@pytest.mark.parametrize("case", CHANNELS)
def test_channel_masks_finalized_and_compacted_networks_agree(case: str) -> None:
    torch.manual_seed(0)
    build, x, layers = CHANNELS[case]
    masked, masks = ticket(build(), x, granularity="channel")
    assert set(masks.density_by_layer()) == layers
    plain, small = masks.finalize(), compact(masked, x)
    with torch.no_grad():
        torch.testing.assert_close(plain(x), masked(x))
        torch.testing.assert_close(small(x), masked(x), rtol=1e-4, atol=1e-5)
    for name, density in masks.density_by_layer().items():
        rows = len(plain.get_submodule(name).weight)
        assert len(small.get_submodule(name).weight) == max(1, round(density * rows)), name
    for name, layer in small.named_modules():
        if isinstance(layer, nn.PReLU):
            assert layer.num_parameters == layer.weight.numel(), name


WEIGHTS: dict[str, tuple[Callable[[], nn.Module], Tensor, str, set[str]]] = {
    "LSTMCell": (
        lambda: network(lambda n, x: n.cell(x)[0], cell=nn.LSTMCell(8, 4)),
        VECTORS,
        "cell",
        {"cell.weight_ih", "cell.weight_hh"},
    ),
    "EmbeddingBag": (lambda: nn.Sequential(nn.EmbeddingBag(9, 4, mode="max")), TOKENS, "0", {"0"}),
    "Embedding with max_norm": (lambda: nn.Sequential(nn.Embedding(9, 4, max_norm=0.5)), TOKENS, "0", {"0"}),
    "Bilinear": (
        lambda: network(lambda n, x: n.bilinear(x, x), bilinear=nn.Bilinear(8, 8, 3)),
        VECTORS,
        "bilinear",
        {"bilinear"},
    ),
    "ParameterList": (
        lambda: network(lambda n, x: x @ n.p[0], p=nn.ParameterList([torch.randn(8, 3)])),
        VECTORS,
        "p",
        {"p.0"},
    ),
    "attention with separate projections": (
        lambda: network(
            lambda n, x: n.attention(x, x[..., :4], x[..., :6])[0],
            attention=nn.MultiheadAttention(8, 2, kdim=4, vdim=6, add_bias_kv=True, batch_first=True),
        ),
        SEQUENCES,
        "attention",
        {f"attention.{part}_proj_weight" for part in "qkv"} | {"attention.out_proj"},
    ),
    "transposed and grouped convolutions": (
        lambda: network(lambda n, x: n.b(n.a(x)), a=nn.ConvTranspose2d(3, 6, 2), b=conv(6, 6, groups=3)),
        IMAGES,
        "*",
        {"a", "b"},
    ),
}


@pytest.mark.parametrize("case", WEIGHTS)
def test_weight_masks_and_finalized_networks_agree(case: str) -> None:
    torch.manual_seed(0)
    build, x, include, layers = WEIGHTS[case]
    net = build()
    masked, masks = ticket(net, x, include=include)
    assert set(masks.density_by_layer()) == layers
    plain = masks.finalize()
    with torch.no_grad():
        torch.testing.assert_close(plain(x), masked(x))
        assert not torch.allclose(plain(x), net(x), atol=1e-3), "the masks act on the output"
    build().load_state_dict(plain.state_dict())


def test_the_fused_kernel_of_a_transformer_layer_reads_masked_weights() -> None:
    torch.manual_seed(0)
    masked, masks = ticket(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval(), SEQUENCES)
    exact = masked(SEQUENCES)
    with torch.no_grad():
        torch.testing.assert_close(masked(SEQUENCES), exact, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(masks.finalize()(SEQUENCES), exact, rtol=1e-4, atol=1e-5)


def hooked(add: Callable[[nn.Module], object]) -> nn.Module:
    net = mlp()
    add(net[2])
    return net


def quantized() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the deprecation of torch.ao
        return torch.ao.quantization.quantize_dynamic(mlp(), {"2": torch.ao.quantization.default_dynamic_qconfig})


class Subclass(Tensor):
    """A tensor type such as those of sharding and quantization libraries."""


def with_subclass() -> nn.Module:
    net = mlp()
    net[2].weight = nn.Parameter(net[2].weight.data.as_subclass(Subclass))
    return net


def with_reference() -> nn.Module:
    net = mlp()
    net[2].weights_to_share = {"weight": [net[2].weight]}
    return net


REFUSED: dict[str, tuple[Callable[[], nn.Module], dict[str, Any], str]] = {
    "weight_norm": (lambda: hooked(weight_norm), {}, r"^2 has weight_norm on its weight.*remove_weight_norm\)$"),
    "spectral_norm": (lambda: hooked(spectral_norm), {}, r"^2 has spectral_norm on its weight"),
    "prune": (
        lambda: hooked(lambda m: prune.l1_unstructured(m, "bias", 0.5)),
        {},
        r"^2 has prune on its bias.*prune.remove",
    ),
    "parametrizations": (
        lambda: hooked(parametrizations.orthogonal),
        {},
        r"^2 is parametrized already \(weight by _Ortho",
    ),
    "LSTM": (
        lambda: nn.Sequential(nn.LSTM(8, 4)),
        {"include": "0"},
        r"^0\.weight_ih_l0 cannot be masked, .*with LSTMCell$",
    ),
    "GRU": (lambda: nn.Sequential(nn.GRU(8, 4)), {"include": "*"}, r"with GRUCell$"),
    "only an RNN": (
        lambda: nn.Sequential(nn.RNN(8, 4)),
        {},
        r"no convolution, linear layer or attention projection: include 0",
    ),
    "lazy": (lambda: nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 2)), {}, r"^0 is a LazyLinear without weights yet"),
    "quantized": (quantized, {}, r"^2 is a quantized layer"),
    "scripted": (lambda: torch.jit.script(mlp()), {}, r"is a TorchScript module"),
    "sparse gradients": (
        lambda: nn.Sequential(nn.Embedding(9, 4, sparse=True)),
        {"include": "0"},
        r"with sparse gradients",
    ),
    "weight in another attribute": (
        with_reference,
        {},
        r"^2\.weight cannot be .*attribute weights_to_share of 2",
    ),
    "tensor subclass": (with_subclass, {}, r"^2\.weight is a Subclass, and masks take plain tensors"),
    "complex": (lambda: nn.Linear(8, 4, dtype=torch.complex64), {}, r"no weight of two or more axes in float16"),
    "float8": (lambda: mlp().to(torch.float8_e4m3fn), {}, r"no weight of two or more axes in float16"),
    "without parameters": (nn.ReLU, {}, r"no weight of two or more axes"),
    "meta": (
        lambda: mlp().to("meta"),
        {"granularity": "channel", "example": VECTORS},
        r"^0\.weight is on the meta device",
    ),
    "attention over masked channels": (
        lambda: network(self_attention, a=nn.Linear(8, 8), b=nn.MultiheadAttention(8, 2)),
        {"granularity": "channel", "example": SEQUENCES},
        r"^channels of a cannot be removed: .*embedding dimension of 8",
    ),
    "random in evaluation mode": (
        lambda: network(lambda n, x: n.b(n.a(x)) + torch.rand(2), a=nn.Linear(8, 8), b=nn.Linear(8, 2)),
        {"granularity": "channel", "example": VECTORS},
        r"^channels of a cannot be removed: the output of Net differs between two calls",
    ),
    "operations of an unfitting example": (mlp, {"penalty": "operations"}, r"^Sequential fails for an input of shape"),
}


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore:Lazy modules")
@pytest.mark.parametrize("case", REFUSED)
def test_what_masks_do_not_support_is_refused_in_one_line(case: str, capfd: pytest.CaptureFixture[str]) -> None:
    build, options, message = REFUSED[case]
    net = build()
    keys = list(net.state_dict())
    with pytest.raises(InputError, match=message) as caught:
        sparsify(net, inplace=True, **options)
    assert "\n" not in str(caught.value)
    assert list(net.state_dict()) == keys
    assert capfd.readouterr().err == ""


def test_a_failed_trace_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    branch = network(lambda n, x: n.a(x) if float(x.sum().item()) > 0 else -n.a(x), a=nn.Linear(8, 4))
    for net, example in ((mlp(), None), (branch, VECTORS)):
        for call in (
            lambda n=net, e=example: sparsify(n, granularity="channel", example=e),
            lambda n=net, e=example: compact(n, e),
        ):
            with pytest.raises(InputError, match="cannot be traced with an input of shape") as caught:
                call()
            assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_compact_refuses_what_it_cannot_copy() -> None:
    net = hooked(weight_norm)
    net(VECTORS).sum().backward()
    with pytest.raises(InputError, match=r"^2 has weight_norm on its weight"):
        compact(net, VECTORS)
    with pytest.raises(InputError, match="ReLU has no floating-point parameter"):
        compact(nn.ReLU(), VECTORS)
    masked, masks = sparsify(mlp())
    weight_norm(masked[0], "bias", dim=None)
    with pytest.raises(InputError, match=r"^0 has weight_norm on its bias"):
        masks.finalize()


def test_compact_leaves_parametrized_layers_whole() -> None:
    net = nn.Sequential(parametrizations.weight_norm(nn.Linear(8, 6)), nn.ReLU(), *mlp()[2:]).eval()
    with torch.no_grad():
        net[2].weight[1] = 0.0
        net[2].bias[1] = 0.0
    small = compact(net, VECTORS)
    assert parametrize.is_parametrized(small[0])
    assert [tuple(small[i].weight.shape) for i in (0, 2, 4)] == [(6, 8), (4, 6), (3, 4)]
    torch.testing.assert_close(small(VECTORS), net(VECTORS))


def test_a_network_is_masked_once() -> None:
    net = mlp()
    masked, masks = sparsify(net, 0.1, granularity="channel", example=VECTORS)
    for granularity in ("weight", "channel"):
        with pytest.raises(
            InputError, match=r"^0 is masked already: sparsify the network that masks.finalize\(\) returns"
        ):
            sparsify(masked, granularity=granularity, example=VECTORS)  # type: ignore[arg-type]
    again, _ = sparsify(net)
    assert torch.equal(again(VECTORS), net(VECTORS))
    third, _ = sparsify(masks.finalize(), 0.1)
    torch.testing.assert_close(third(VECTORS), net(VECTORS))


@pytest.mark.slow
def test_copies_and_pickles() -> None:
    masked, masks = ticket(mlp(), VECTORS, granularity="channel")
    twin, its_masks = copy.deepcopy((masked, masks))
    assert its_masks.module is twin
    its_masks.ticket = False
    assert masks.ticket
    with pytest.raises(RuntimeError, match="only supported through state_dict"):  # torch's rule for parametrizations
        pickle.dumps(masked)
    for net in (masks.finalize(), compact(masked, VECTORS)):
        file = io.BytesIO(pickle.dumps(net))
        assert torch.equal(pickle.load(file)(VECTORS), net(VECTORS))


@pytest.mark.parametrize(("dtype", "granularity"), [(torch.float16, "channel"), (torch.bfloat16, "weight")])
def test_other_dtypes(dtype: torch.dtype, granularity: str) -> None:
    torch.manual_seed(0)
    net, x = mlp().to(dtype), VECTORS.to(dtype)
    masked, masks = ticket(net, x, granularity=granularity)
    plain, small = masks.finalize(), compact(masked, x)
    assert {tensor.dtype for tensor in small.state_dict().values()} == {dtype}
    assert torch.equal(plain(x), masked(x))
    torch.testing.assert_close(small(x), masked(x), rtol=0.02, atol=0.02)


def test_memory_formats() -> None:
    torch.manual_seed(0)
    net = pooled(lambda n, x: n.b(n.a(x).relu()).relu(), 5, a=conv(3, 6), b=conv(6, 5))
    net = net.to(memory_format=torch.channels_last)
    net.head.weight = nn.Parameter(torch.randn(5, 4).t())  # not contiguous
    x = IMAGES.to(memory_format=torch.channels_last)
    masked, masks = ticket(net, x, granularity="channel")
    plain, small = masks.finalize(), compact(masked, x)
    for network_ in (plain, small):
        torch.testing.assert_close(network_(x), masked(x), rtol=1e-4, atol=1e-5)
        assert network_.b.weight.is_contiguous(memory_format=torch.channels_last)
    assert small.b.weight.shape[1] < 6


def test_masks_on_the_meta_device_have_a_ticket_mode() -> None:
    _, masks = sparsify(mlp().to("meta"))
    masks.ticket = True
    assert masks.ticket
    assert masks.finalize()[0].weight.is_meta
