"""CUDA graphs of the loss, with a capture that computes again at each replay in place of a GPU."""

import copy
import pickle
from collections.abc import Callable

import pytest
import torch

from hgsl.common.errors import InputError
from hgsl.losses import HardGlobalSoftminLoss, deferral, deferred_checks, graphs, sparse_optimizer

C, D = 300, 8


@pytest.fixture(autouse=True)
def captures(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of replays of each capture."""
    replays: list[int] = []

    def capture(step: Callable[[], None], stream: None) -> Callable[[], None]:
        number = len(replays)
        replays.append(0)

        def replay() -> None:
            replays[number] += 1
            step()

        return replay

    monkeypatch.setattr(graphs, "capture", capture)
    monkeypatch.setattr(graphs, "DEVICES", ("cpu",))
    monkeypatch.setattr(deferral, "DEFERRING_DEVICES", ("cpu",))
    return replays


def pair(**options: object) -> tuple[HardGlobalSoftminLoss, HardGlobalSoftminLoss]:
    torch.manual_seed(0)
    captured = HardGlobalSoftminLoss(C, D, **options)
    plain = HardGlobalSoftminLoss(C, D, **options, cuda_graphs=False)
    plain.load_state_dict(captured.state_dict())
    return captured, plain


@pytest.mark.parametrize(
    "options",
    [{}, {"top_k": 3, "both_sides": 1.0}, {"top_k": 3, "sparse_grad": True}, {"similarity": "cosine", "margin": 0.1}],
    ids=["all", "both sides", "sparse", "cosine"],
)
def test_training_is_the_same_with_and_without_them(options: dict[str, object], captures: list[int]) -> None:
    results = []
    for loss_fn in pair(decorrelation_sample=16, **options):
        torch.manual_seed(1)
        layer = torch.nn.Linear(6, D)
        optimizer = sparse_optimizer(loss_fn) if loss_fn.sparse_grad else torch.optim.Adam([loss_fn.centers], 0.1)
        for _ in range(4):
            x, labels = torch.randn(5, 6), torch.randint(C, (5,))
            loss_fn.zero_grad()
            loss = loss_fn(layer(x), labels)
            (2 * loss).backward()
            optimizer.step()
        results.append((loss.detach(), loss_fn.centers.detach(), layer.weight.grad, loss_fn.alpha.grad))
    for first, second in zip(*results, strict=True):
        torch.testing.assert_close(first, second)
    assert captures == [4]


def test_calls_do_not_depend_on_each_other(captures: list[int]) -> None:
    captured, plain = pair(decorrelation=0.0)
    x, labels = torch.randn(2, 5, D, requires_grad=True), torch.randint(C, (2, 5))
    gradients = []
    for loss_fn in (captured, plain):
        first, second = (loss_fn(x[i], labels[i]) for i in range(2))  # both before any backward pass
        gradients.append(torch.autograd.grad(first + 3 * second, [x, loss_fn.centers]))
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)
    assert captures == [2]


def test_second_derivatives_draw_the_same_sample() -> None:
    results = []
    for loss_fn in pair(decorrelation=5.0, decorrelation_sample=16):
        torch.manual_seed(2)
        x = torch.randn(4, D, requires_grad=True)
        labels = torch.randint(C, (4,))
        loss = loss_fn(x, labels)
        gradients = torch.autograd.grad(loss, [x, loss_fn.centers], create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in gradients), loss_fn.centers)[0]
        results.append([*gradients, second, torch.rand(())])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


def test_what_is_fixed_is_captured_again(captures: list[int]) -> None:
    loss_fn, _ = pair(top_k=3)
    x, labels = torch.randn(4, D, requires_grad=True), torch.arange(4)
    loss_fn(x, labels)
    loss_fn(x, labels)
    assert captures == [2]
    loss_fn(x[:3], labels[:3])
    loss_fn(x.half(), labels)
    loss_fn.set_top_k(2)
    loss_fn(x, labels)
    loss_fn.alpha.requires_grad_(False)
    loss_fn(x, labels)
    assert captures == [2, 1, 1, 1, 1]
    with torch.no_grad():
        loss_fn(x, labels)
    loss_fn(x, labels, indices_tuple=(torch.arange(4),) * 3)
    for size in range(5, 20):
        loss_fn(torch.randn(size, D), torch.arange(size))
    assert len(captures) == graphs.MOST_GRAPHS


def test_invalid_inputs_are_named_at_once_or_later(captures: list[int]) -> None:
    loss_fn, _ = pair()
    x, labels = torch.randn(4, D, requires_grad=True), torch.arange(4)
    wrong = torch.tensor([0, 1, C, -1])
    for batch in (labels, wrong, labels):
        if batch is wrong:
            with pytest.raises(InputError, match=f"labels -1, {C} are out of range"):
                loss_fn(x, batch)
        else:
            assert loss_fn(x, batch).isfinite()
    with deferred_checks() as checks:
        assert loss_fn(x, labels).isfinite()
        checks.raise_errors()
        assert loss_fn(x * torch.nan, labels).isnan()
        with pytest.raises(InputError, match="embeddings hold NaN or infinity"):
            checks.raise_errors()
        checks.raise_errors()
    assert len(captures) == 1


def test_a_copy_has_graphs_of_its_own(captures: list[int]) -> None:
    loss_fn, _ = pair(decorrelation=0.0)
    x, labels = torch.randn(4, D, requires_grad=True), torch.arange(4)
    expected = loss_fn(x, labels)
    for other in (copy.deepcopy(loss_fn), pickle.loads(pickle.dumps(loss_fn))):
        assert torch.equal(other(x, labels), expected)
    assert captures == [1, 1, 1]


def test_a_failed_capture_is_an_ordinary_call(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(step: Callable[[], None], stream: None) -> Callable[[], None]:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(graphs, "capture", refuse)
    captured, plain = pair(decorrelation=0.0)
    x, labels = torch.randn(4, D, requires_grad=True), torch.arange(4)
    with pytest.warns(UserWarning, match="without CUDA graphs: operation not permitted when stream is capturing$"):
        loss = captured(x, labels)
    assert torch.equal(loss, plain(x, labels))
    assert torch.equal(captured(x, labels), loss)
