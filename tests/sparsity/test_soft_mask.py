"""One mask against an independent float64 version of its formulas and gradients."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrize

from hgsl.common.errors import InputError
from hgsl.sparsity import SoftMaskedConv2d, SoftMaskedLinear, temperature_at
from hgsl.sparsity.soft_mask import SoftMask, attach, detach


def sigmoid(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x)) if x >= 0 else math.exp(x) / (1.0 + math.exp(x))


def slow_mask(scores: np.ndarray, s0: float, beta: float, ticket: bool) -> np.ndarray:
    """The formula, entry by entry in Python floats."""
    values = [(1.0 if s > 0 else 0.0) if ticket else sigmoid(beta * s) for s in scores.ravel().tolist()]
    return np.array([value / sigmoid(s0) for value in values]).reshape(scores.shape)


def random_mask(s0: float, shape: tuple[int, ...] = (3, 4), dtype: torch.dtype = torch.float64) -> SoftMask:
    mask = SoftMask(shape, s0, dtype=dtype)
    with torch.no_grad():
        mask.scores.copy_(torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(1)))
    return mask


@settings(max_examples=60, deadline=None)
@given(st.floats(-0.5, 0.5), st.floats(0.01, 300.0), st.booleans())
def test_mask_is_the_formula(s0: float, beta: float, ticket: bool) -> None:
    mask = random_mask(s0)
    expected = slow_mask(mask.scores.detach().numpy(), s0, beta, ticket)
    np.testing.assert_allclose(mask.mask(beta, ticket).detach().numpy(), expected, rtol=1e-12)
    mask.temperature.fill_(beta)
    mask.ticket = ticket
    np.testing.assert_allclose(mask.mask().detach().numpy(), expected, rtol=1e-12)
    assert mask.penalty().item() == pytest.approx(expected.sum(), rel=1e-12)


@pytest.mark.parametrize("s0", [-0.1, 0.0, 0.1])
@pytest.mark.parametrize("beta", [1.0, 7.0, 200.0])
def test_gradients_are_the_derivatives(s0: float, beta: float) -> None:
    """d m / d s = beta sigmoid(beta s) (1 - sigmoid(beta s)) / sigmoid(s0); the loss is sum(c w m) + 0.3 sum(m)."""
    mask = random_mask(s0)
    mask.temperature.fill_(beta)
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(3, 4, dtype=torch.float64, generator=generator, requires_grad=True)
    factor = torch.randn(3, 4, dtype=torch.float64, generator=generator)
    ((factor * mask(weight)).sum() + 0.3 * mask.penalty()).backward()

    s, w, c = mask.scores.detach().numpy(), weight.detach().numpy(), factor.numpy()
    soft = np.vectorize(sigmoid)(beta * s)
    expected = (c * w + 0.3) * beta * soft * (1 - soft) / sigmoid(s0)
    assert mask.scores.grad is not None
    assert weight.grad is not None
    np.testing.assert_allclose(mask.scores.grad.numpy(), expected, rtol=1e-9, atol=1e-15)
    np.testing.assert_allclose(weight.grad.numpy(), c * slow_mask(s, s0, beta, False), rtol=1e-12)


def test_in_a_ticket_only_open_weights_have_gradients() -> None:
    mask = random_mask(0.1)
    mask.ticket = True
    weight = torch.ones(3, 4, dtype=torch.float64, requires_grad=True)
    mask(weight).sum().backward()
    assert mask.scores.grad is None
    assert weight.grad is not None
    assert torch.equal(weight.grad, (mask.scores > 0).double() / torch.sigmoid(mask.initial_value))


@pytest.mark.parametrize("s0", [-0.1, 0.0, 0.1])
def test_the_initial_mask_is_one(s0: float) -> None:
    mask = SoftMask((5, 5), s0)
    weight = torch.randn(5, 5)
    torch.testing.assert_close(mask(weight), weight, rtol=1e-6, atol=0)


def test_a_score_of_zero_is_closed() -> None:
    mask = SoftMask((2,), 0.0)
    assert mask.count_remaining() == 0
    assert mask.mask(ticket=True).tolist() == [0.0, 0.0]


def test_prune_applies_the_temperature_before_it_is_reset() -> None:
    """The published code resets beta first and so prunes with min(s, s0), which is temperature=1 here."""
    scores, s0 = [-0.02, -0.001, 0.0, 0.05, 0.4], 0.1
    ours, published = SoftMask((5,), s0, dtype=torch.float64), SoftMask((5,), s0, dtype=torch.float64)
    for mask in (ours, published):
        mask.scores.data = torch.tensor(scores, dtype=torch.float64)
        mask.temperature.fill_(200.0)
    ours.prune()
    published.prune(temperature=1.0)
    assert ours.scores.tolist() == pytest.approx([-4.0, -0.2, 0.0, 0.1, 0.1], abs=1e-12)
    assert published.scores.tolist() == pytest.approx([-0.02, -0.001, 0.0, 0.05, 0.1], abs=1e-12)
    assert ours.temperature.item() == published.temperature.item() == 1.0


def test_the_density_is_counted_on_hard_masks() -> None:
    """A soft mask is never zero, so the count of its nonzeros would be a density of 1."""
    mask = random_mask(0.0, (40, 40))
    assert (mask.mask() != 0).all()
    assert mask.count_remaining() == int((mask.scores > 0).sum()) < mask.count_masked() == 1600


def test_cost_weights_penalty_and_counts() -> None:
    mask = SoftMask((3,), 0.0, weight_count=torch.tensor([10, 20, 30]), dtype=torch.float64)
    mask.scores.data = torch.tensor([1.0, -1.0, 2.0], dtype=torch.float64)
    expected = sum(cost * sigmoid(s) / 0.5 for cost, s in [(10, 1.0), (20, -1.0), (30, 2.0)])
    assert mask.penalty().item() == pytest.approx(expected)
    assert (mask.count_remaining(), mask.count_masked()) == (40, 60)


def test_attach_and_detach_leave_the_parameters_in_order() -> None:
    layer = nn.MultiheadAttention(8, 2)
    names, values = list(layer.state_dict()), [value.clone() for value in layer.state_dict().values()]
    attach(layer, "in_proj_weight", SoftMask((24, 8)))
    attach(layer.out_proj, "weight", SoftMask((8, 8)))
    assert list(layer.state_dict()) != names
    detach(layer)
    detach(layer.out_proj)
    assert type(layer) is nn.MultiheadAttention
    assert list(layer.state_dict()) == names
    assert all(torch.equal(a, b) for a, b in zip(layer.state_dict().values(), values, strict=True))


@pytest.mark.parametrize("kind", ["conv", "linear"])
def test_masked_layers_compute_with_weight_times_mask(kind: str) -> None:
    torch.manual_seed(0)
    if kind == "conv":
        layer, x = (
            SoftMaskedConv2d(4, 6, 3, stride=2, padding=1, groups=2, mask_initial_value=0.1),
            torch.randn(2, 4, 9, 9),
        )
    else:
        layer, x = SoftMaskedLinear(4, 6, bias=False, mask_initial_value=0.1), torch.randn(2, 4)
    mask = layer.parametrizations.weight[0]
    mask.scores.data.normal_()
    weight = layer.parametrizations.weight.original

    def plain(mask_values: torch.Tensor) -> torch.Tensor:
        if kind == "conv":
            return nn.functional.conv2d(x, weight * mask_values, layer.bias, 2, 1, groups=2)
        return x @ (weight * mask_values).T

    soft = torch.sigmoid(5.0 * mask.scores) / torch.sigmoid(torch.tensor(0.1))
    hard = (mask.scores > 0).float() / torch.sigmoid(torch.tensor(0.1))
    torch.testing.assert_close(layer(x, temp=5.0), plain(soft))
    torch.testing.assert_close(layer(x, ticket=True), plain(hard))
    torch.testing.assert_close(layer.compute_mask(temp=5.0), soft)
    layer.masks.temperature = 5.0
    torch.testing.assert_close(layer(x), plain(soft))
    assert layer.weight.shape == weight.shape
    assert parametrize.is_parametrized(layer, "weight")


def test_a_single_layer_checkpoints_prunes_and_rewinds() -> None:
    layer = SoftMaskedLinear(3, 2)
    before = layer.parametrizations.weight.original.detach().clone()
    with pytest.raises(InputError, match="rewind before checkpoint"):
        layer.rewind_weights()
    layer.checkpoint()
    layer.parametrizations.weight.original.data.zero_()
    layer.parametrizations.weight[0].scores.data.fill_(0.5)
    layer.rewind_weights()
    assert torch.equal(layer.parametrizations.weight.original, before)
    assert (layer.compute_mask(ticket=True) == 2.0).all()
    layer.prune(temp=3.0)
    assert (layer.parametrizations.weight[0].scores == 0.0).all()


def test_schedule_runs_from_one_to_the_final_temperature() -> None:
    values = [temperature_at(epoch, 85) for epoch in range(85)]
    assert values[0] == 1.0
    assert values[84] == pytest.approx(200.0)
    ratios = [b / a for a, b in itertools.pairwise(values)]
    assert ratios == pytest.approx([200.0 ** (1 / 84)] * 84)
    assert temperature_at(0, 1) == 200.0
    for epoch, epochs in ((85, 85), (-1, 5), (0, 0)):
        with pytest.raises(InputError, match="outside a round"):
            temperature_at(epoch, epochs)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf, "5"])
def test_a_temperature_must_be_positive(bad: float) -> None:
    layer = SoftMaskedLinear(3, 2)
    with pytest.raises(InputError, match=r"temperature is .*positive"):
        layer.masks.temperature = bad
    with pytest.raises(InputError, match=r"temperature is .*positive"):
        layer.prune(bad)
    for ticket in (True, False):
        with pytest.raises(InputError, match=r"temperature is .*positive"):
            layer(torch.ones(1, 3), temp=bad, ticket=ticket)
        with pytest.raises(InputError, match=r"temperature is .*positive"):
            layer.compute_mask(temp=bad, ticket=ticket)
    with pytest.raises(InputError, match=r"temperature is .*positive"):
        temperature_at(0, 5, final=bad)


def test_the_initial_value_must_be_finite() -> None:
    with pytest.raises(InputError, match="mask_initial_value is nan"):
        SoftMaskedLinear(3, 2, mask_initial_value=math.nan)


@pytest.mark.parametrize("bad", [-1000.0, 11.0, math.nan, math.inf, "0"])
def test_the_initial_value_is_bounded(bad: float) -> None:
    with pytest.raises(InputError, match=r"mask_initial_value is .*expected -10 to 10"):
        SoftMaskedLinear(3, 2, mask_initial_value=bad)
    assert torch.isfinite(SoftMask((2,), -10.0, dtype=torch.float16).mask()).all()


def test_the_penalty_of_half_precision_weights_is_finite() -> None:
    mask = SoftMask((400, 400), 0.0, dtype=torch.float16)
    assert mask.penalty().item() == 160_000.0
    mask.penalty().backward()
    assert mask.scores.grad is not None
    assert mask.scores.grad.dtype == torch.float16
    assert (mask.scores.grad == 0.5).all()
