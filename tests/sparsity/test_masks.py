"""The controller of the masks: rounds, rewind, densities, and the finalized network."""

import copy
import warnings
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from hgsl.common.errors import InputError
from hgsl.sparsity import MaskedNet, Masks, SoftMaskedConv2d, SoftMaskedLinear, sparsify


class Net(nn.Module):
    """A convolution, a norm with running statistics, and a weight that two layers share."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.first = nn.Linear(8, 8)
        self.second = nn.Linear(8, 8, bias=False)
        self.second.weight = self.first.weight
        self.head = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.conv(x)).relu().mean((2, 3))
        return self.head(self.second(self.first(x).relu()))


def randomize(masks: Masks, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for scores in masks.mask_parameters():
        scores.data = torch.randn(scores.shape, generator=generator)


@pytest.fixture
def masked() -> tuple[nn.Module, Masks]:
    torch.manual_seed(0)
    return sparsify(Net(), 0.1, exclude="head")


def test_temperature_and_ticket_mode_are_set_in_every_mask(masked: tuple[nn.Module, Masks]) -> None:
    network, masks = masked
    randomize(masks)
    x = torch.randn(2, 3, 8, 8)
    soft = network(x)
    masks.temperature = 30.0
    sharp = network(x)
    masks.ticket = True
    assert masks.temperature == 30.0
    assert masks.ticket
    assert not torch.allclose(soft, sharp, atol=1e-3)
    assert not torch.allclose(sharp, network(x), atol=1e-3)
    with pytest.raises(InputError, match="temperature is 0"):
        masks.temperature = 0


def test_densities_and_penalty_count_a_shared_weight_once(masked: tuple[nn.Module, Masks]) -> None:
    network, masks = masked
    randomize(masks)
    conv, shared = (scores > 0 for scores in masks.mask_parameters())
    assert conv.shape == (8, 3, 3, 3)
    assert shared.shape == (8, 8)
    remaining_count = int(conv.sum() + shared.sum())
    parameter_count = sum(parameter.numel() for parameter in Net().parameters())
    assert masks.density() == remaining_count / (216 + 64)
    assert masks.overall_density() == pytest.approx((parameter_count - (280 - remaining_count)) / parameter_count)
    by_layer = masks.density_by_layer()
    assert by_layer == {
        "conv": pytest.approx(conv.double().mean().item()),
        "first": pytest.approx(shared.double().mean().item()),
        "second": pytest.approx(shared.double().mean().item()),
    }
    soft = [torch.sigmoid(s.double()) / torch.sigmoid(torch.tensor(0.1).double()) for s in masks.mask_parameters()]
    assert masks.penalty().item() == pytest.approx(sum(s.sum().item() for s in soft), rel=1e-5)
    assert network.first.weight.data_ptr() != network.second.weight.data_ptr()
    assert torch.equal(network.first.weight, network.second.weight)


def test_parameter_lists_can_be_iterated_twice(masked: tuple[nn.Module, Masks]) -> None:
    """The published code passes an exhausted iterator to its final optimizer, which then trains nothing."""
    network, masks = masked
    weights, scores = masks.weight_parameters(), masks.mask_parameters()
    assert len(list(weights)) == len(list(weights)) == 8
    assert len(list(scores)) == len(list(scores)) == 2
    assert {id(p) for p in weights} | {id(p) for p in scores} == {id(p) for p in network.parameters()}
    assert not {id(p) for p in weights} & {id(p) for p in scores}

    masks.checkpoint()
    masks.rewind()
    for scores in masks.mask_parameters():
        scores.data.fill_(1.0)
    masks.ticket = True
    optimizer = torch.optim.SGD(masks.weight_parameters(), lr=0.1)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network(torch.randn(4, 3, 8, 8)).square().mean().backward()
    optimizer.step()
    moved = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert {"conv.parametrizations.weight.original", "first.parametrizations.weight.original", "head.weight"} <= moved
    assert not any(name.endswith(".scores") for name in moved)


def test_rewind_restores_every_parameter_and_buffer_except_those_of_masks(masked: tuple[nn.Module, Masks]) -> None:
    """The published code restores only the masked layers, without the head and the running statistics."""
    network, masks = masked
    with pytest.raises(InputError, match="rewind before checkpoint"):
        masks.rewind()
    masks.checkpoint()
    assert masks.saved is not None
    before = {name: value.clone() for name, value in network.state_dict().items()}
    identities = [id(parameter) for parameter in network.parameters()]

    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    masks.temperature = 9.0
    for _ in range(2):
        optimizer.zero_grad()
        network(torch.randn(4, 3, 8, 8)).square().sum().backward()
        optimizer.step()
    moved = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert {"head.weight", "norm.running_mean", "norm.num_batches_tracked", "first.bias"} <= moved

    trained = {name: value.clone() for name, value in network.state_dict().items()}
    masks.rewind()
    for name, value in network.state_dict().items():
        of_a_mask = name.endswith((".scores", ".temperature", ".initial_value"))
        assert torch.equal(value, (trained if of_a_mask else before)[name]), name
    assert [id(parameter) for parameter in network.parameters()] == identities
    assert masks.temperature == 9.0


def test_pruning_uses_the_temperature_of_the_round(masked: tuple[nn.Module, Masks]) -> None:
    _, masks = masked
    randomize(masks)
    before = [scores.clone() for scores in masks.mask_parameters()]
    masks.temperature = 50.0
    masks.prune()
    assert masks.temperature == 1.0
    for old, new in zip(before, masks.mask_parameters(), strict=True):
        torch.testing.assert_close(new.detach(), (50.0 * old).clamp(max=0.1).detach())


@pytest.mark.parametrize("ticket", [True, False])
def test_finalize_returns_the_plain_network_with_the_same_output(masked: tuple[nn.Module, Masks], ticket: bool) -> None:
    network, masks = masked
    randomize(masks)
    masks.temperature = 3.0
    masks.ticket = ticket
    network.eval()
    plain = masks.finalize()
    original = Net()
    assert list(plain.state_dict()) == list(original.state_dict())
    assert [type(part) for part in plain.modules()] == [type(part) for part in original.modules()]
    original.load_state_dict(plain.state_dict())
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(plain(x), network(x))
    assert torch.equal(original.eval()(x), network(x))
    assert plain.first.weight is plain.second.weight
    assert masks.density() == Masks(network).density(), "the masked network is unchanged"
    if ticket:
        zeros = plain.conv.weight == 0
        assert torch.equal(zeros, masks.mask_parameters()[0] <= 0)
        assert not torch.signbit(plain.conv.weight[zeros]).any(), "closed weights are +0.0"


def test_a_deepcopy_and_a_reloaded_network_have_masks_of_their_own(masked: tuple[nn.Module, Masks]) -> None:
    network, masks = masked
    randomize(masks)
    masks.temperature = 4.0
    network.eval()
    x = torch.randn(2, 3, 8, 8)

    twin = copy.deepcopy(network)
    assert torch.equal(twin(x), network(x))
    Masks(twin).temperature = 100.0
    assert masks.temperature == 4.0

    reloaded, reloaded_masks = sparsify(Net(), 0.0, exclude="head")
    reloaded.load_state_dict(network.state_dict())
    assert torch.equal(reloaded.eval()(x), network(x)), "the state dict holds temperature and s0"
    assert reloaded_masks.density() == masks.density()


def test_a_warning_names_fully_closed_layers(masked: tuple[nn.Module, Masks]) -> None:
    _, masks = masked
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        masks.ticket = True
    masks.ticket = False
    masks.mask_parameters()[0].data.fill_(-1.0)
    assert masks.closed_layers() == ["conv"]
    with pytest.warns(UserWarning, match="closes these layers fully: conv"):
        masks.ticket = True


def test_a_network_without_masks_is_refused() -> None:
    with pytest.raises(InputError, match="Net has no mask"):
        Masks(Net())


def test_a_hand_written_network_of_masked_layers() -> None:
    class Small(MaskedNet):
        def __init__(self) -> None:
            super().__init__()
            self.conv = SoftMaskedConv2d(3, 4, 3, mask_initial_value=-0.1)
            self.head = SoftMaskedLinear(4, 2, mask_initial_value=-0.1)

        def forward(self, x: torch.Tensor, temp: float | None = None, ticket: bool | None = None) -> torch.Tensor:
            return self.head(self.conv(x, temp, ticket).mean((2, 3)), temp, ticket)

    net, x = Small(), torch.randn(2, 3, 8, 8)
    randomize(net.masks)
    net.checkpoint()
    with torch.no_grad():
        net.conv.bias += 1.0  # type: ignore[operator]
    net.rewind_weights()
    soft = net(x, temp=7.0)
    net.masks.temperature = 7.0
    torch.testing.assert_close(net(x), soft)
    assert set(net.masks.density_by_layer()) == {"conv", "head"}
    hard = net(x, ticket=True)
    net.masks.ticket = True
    plain = net.masks.finalize()
    assert list(plain.state_dict()) == ["conv.weight", "conv.bias", "head.weight", "head.bias"]
    torch.testing.assert_close(plain(x), hard)
    torch.testing.assert_close(plain(x, temp=3.0), hard), "a finalized layer has no temperature"
    net.prune()
    assert net.masks.temperature == 1.0
    copied = copy.deepcopy(net)
    assert copied.masks.module is copied

    with pytest.raises(InputError, match="this SoftMaskedConv2d is finalized"):
        plain.conv.compute_mask()
    net.more = SoftMaskedLinear(2, 2)
    net.masks.temperature = 5.0
    assert net.more.compute_mask(temp=5.0).equal(net.more.compute_mask()), "the controller includes layers added later"


def test_finalize_refuses_another_parametrization_of_a_masked_layer() -> None:
    masked, masks = sparsify(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)))
    parametrize.register_parametrization(masked[1], "bias", nn.Softplus())
    with pytest.raises(InputError, match="bias of 1 has a parametrization beside its mask"):
        masks.finalize()


@pytest.mark.parametrize("granularity", ["weight", "channel"])
def test_a_finalized_network_is_the_dense_one_operator_by_operator(granularity: str) -> None:
    """Inference costs the same: equal modules, parameters and operators, on tensors of equal shapes."""
    dense = Net().eval()
    x = torch.randn(2, 3, 8, 8)
    masked, masks = sparsify(dense, granularity=granularity, exclude="head", example=x)
    randomize(masks)
    masks.ticket = True
    plain = masks.finalize()

    def parts(net: nn.Module) -> list[object]:
        return [(name, type(part)) for name, part in net.named_modules()] + [
            (name, tensor.shape, tensor.dtype)
            for tensors in (net.named_parameters(), net.named_buffers())
            for name, tensor in tensors
        ]

    def operators(net: nn.Module) -> list[object]:
        graph = torch.export.export(net, (x,)).graph
        shapes = [[value.shape for value in (node.meta.get("val"),) if hasattr(value, "shape")] for node in graph.nodes]
        return [(node.op, str(node.target), size) for node, size in zip(graph.nodes, shapes, strict=True)]

    assert parts(plain) == parts(dense)
    assert not any(parametrize.is_parametrized(part) for part in plain.modules())
    assert operators(plain) == operators(dense)
    assert len(operators(masked)) > len(operators(dense)), "the masks add operators"


@pytest.mark.parametrize("granularity", ["weight", "channel"])
@pytest.mark.parametrize("ticket", [False, True])
def test_joint_masks_are_those_of_each_layer(granularity: str, ticket: bool) -> None:
    torch.manual_seed(0)
    network, masks = sparsify(Net(), 0.1, exclude="head", granularity=granularity, example=torch.randn(2, 3, 8, 8))
    randomize(masks)
    masks.temperature, masks.ticket = 3.0, ticket
    x, results = torch.randn(2, 3, 8, 8), []
    for context in (nullcontext(), masks.joint()):
        network.zero_grad()
        with context:
            output, penalty = network(x), masks.penalty()
            (output.square().sum() + 0.01 * penalty).backward()
        gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
        results.append((output, penalty, gradients))
    (output, penalty, gradients), (joint_output, joint_penalty, joint_gradients) = results
    assert torch.equal(joint_output, output)
    torch.testing.assert_close(joint_penalty, penalty)
    assert len(joint_gradients) == len(gradients) > len(masks.mask_parameters())
    torch.testing.assert_close(joint_gradients, gradients)
    masks.ticket = not ticket
    assert not torch.equal(network(x), output)  # after the context, each mask is computed again
