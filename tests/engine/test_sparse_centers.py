"""Class centers with sparse gradients in a run: memory, steps, schedule, clipping, and resuming to the last bit."""

import copy
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hgsl.cli import train
from hgsl.common import ranks
from hgsl.common.errors import InputError
from hgsl.config import LossConfig, OptimConfig
from hgsl.engine.folder.checkpoint import load_state
from hgsl.engine.folder.logging import read_metrics
from hgsl.engine.parts.objective import SPARSE_FROM, Objective, build_objective, use_sparse_centers
from hgsl.engine.parts.optim import JointOptimizer, build_optimizer, create_schedule
from hgsl.engine.parts.shards import clip_gradients, optimizer_state
from hgsl.losses import HardGlobalSoftminLoss, sparse_optimizer

CLASSES, DIMENSION = 3000, 8
SMALL = [
    *("--config", str(Path(train.__file__).parents[2] / "configs" / "folder.yaml"), "--run.device", "cpu"),
    *("--model.backbone", "test_resnet", "--model.weights", "none", "--data.image_size", "32", "--data.workers", "0"),
    *("--train.epochs", "3", "--train.batch_size", "8", "--run.threads", "1", "--model.embedding_size", "16"),
    *("--run.precision", "float32", "--eval.before", "false", "--eval.page", "false"),
]


class LargeTensors(TorchDispatchMode):
    """Lists the operations that make a dense tensor of at least ``size`` elements, views of ``known`` excluded."""

    def __init__(self, size: int, known: Tensor) -> None:
        super().__init__()
        self.size, self.known, self.made = size, known.untyped_storage().data_ptr(), list[str]()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor) and not leaf.is_sparse]
        large = [t for t in tensors if t.numel() >= self.size and t.untyped_storage().data_ptr() != self.known]
        self.made += [str(func)] * len(large)
        return result


def build(settings: OptimConfig, **options: object) -> tuple[nn.Module, Objective, torch.optim.Optimizer]:
    torch.manual_seed(0)
    network = nn.Linear(5, DIMENSION)
    objective = build_objective(LossConfig(top_k=3, alpha=0.4, **options), CLASSES, DIMENSION)  # type: ignore[arg-type]
    groups = [
        {"name": "network", "params": [*network.parameters()], "lr": 1e-2},
        {"name": "centers", "params": [objective.loss_fn.centers], "lr": settings.centers_lr, "weight_decay": 0.0},
        {"name": "scale", "params": [objective.loss_fn.alpha], "lr": 1e-3, "weight_decay": 0.0},
    ]
    return network, objective, build_optimizer(groups, settings, objective)


def seeded_batch(seed: int) -> tuple[Tensor, Tensor]:
    """Returns a batch; the rows that the regularizer samples next follow from the seed as well."""
    torch.manual_seed(seed)
    return torch.randn(6, 5), torch.randint(CLASSES, (6,))


def step(network: nn.Module, objective: Objective, optimizer: torch.optim.Optimizer, seed: int) -> float:
    points, labels = seeded_batch(seed)
    optimizer.zero_grad(set_to_none=True)
    loss = objective(network(points), labels)
    loss.backward()
    clip_gradients(optimizer, 0.5, None)
    optimizer.step()
    return loss.item()


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_no_gradient_or_moment_of_all_centers_is_held(name: str) -> None:
    network, objective, optimizer = build(OptimConfig(name=name), sparse_centers=True)
    centers = objective.loss_fn.centers
    with LargeTensors(CLASSES * DIMENSION, centers) as large:
        for seed in range(3):
            step(network, objective, optimizer, seed)
    assert not large.made
    assert centers.grad is not None
    assert centers.grad.is_sparse
    state = optimizer.state_dict()["state"]
    assert all(value.numel() < CLASSES for moments in state.values() for value in moments.values())

    network, objective, optimizer = build(OptimConfig(name=name), sparse_centers=False)
    with LargeTensors(CLASSES * DIMENSION, objective.loss_fn.centers) as large:
        step(network, objective, optimizer, 0)
    assert large.made  # the count sees what a dense gradient takes


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_steps_are_those_of_two_optimizers(name: str) -> None:
    settings = OptimConfig(name=name, centers_lr=0.05)
    network, objective, optimizer = build(settings, sparse_centers=True)
    other, reference, _ = build(settings, sparse_centers=True)
    loss_fn = HardGlobalSoftminLoss(CLASSES, DIMENSION, top_k=3, alpha=0.4, sparse_grad=True)
    loss_fn.load_state_dict(reference.loss_fn.state_dict())
    optimizer_class = {"adamw": torch.optim.AdamW, "sgd": lambda groups, **_: torch.optim.SGD(groups, momentum=0.9)}[
        name
    ]
    main = optimizer_class(
        [
            {"params": [*other.parameters()], "lr": 1e-2, "weight_decay": settings.weight_decay},
            {"params": [loss_fn.alpha], "lr": 1e-3, "weight_decay": 0.0},
        ]
    )
    sparse = sparse_optimizer(loss_fn, "sgd", lr=0.05)
    parameters = [*other.parameters(), loss_fn.alpha, loss_fn.centers]
    for seed in range(4):
        loss = step(network, objective, optimizer, seed)
        points, labels = seeded_batch(seed)
        for stepper in (main, sparse):
            stepper.zero_grad()
        expected = loss_fn(other(points), labels)
        expected.backward()
        gradients = [p.grad.to_dense() for p in parameters if p.grad is not None]
        norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
        for parameter in parameters:
            assert parameter.grad is not None
            parameter.grad.mul_(min(1.0, 0.5 / float(norm + 1e-6)))
        for stepper in (main, sparse):
            stepper.step()
        assert loss == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(objective.loss_fn.centers, loss_fn.centers, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(network.weight, other.weight, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(objective.loss_fn.centers.norm(dim=1), torch.ones(CLASSES))


def test_clipping_counts_a_row_that_occurs_twice_once() -> None:
    _, objective, optimizer = build(OptimConfig(), sparse_centers=True)
    centers = objective.loss_fn.centers
    indices, values = torch.tensor([[4, 4, 7]]), torch.full((3, DIMENSION), 0.5)
    centers.grad = torch.sparse_coo_tensor(indices, values, centers.shape, check_invariants=True)
    dense = centers.grad.to_dense()
    norm = clip_gradients(optimizer, 1.0, None)
    assert norm == pytest.approx(dense.norm().item())
    torch.testing.assert_close(centers.grad.to_dense(), dense / norm, rtol=1e-5, atol=1e-6)


def test_the_schedule_and_a_saved_state_reach_both_optimizers() -> None:
    settings = OptimConfig(schedule="constant", warmup=0.5)
    network, objective, optimizer = build(settings, sparse_centers=True)
    assert isinstance(optimizer, JointOptimizer)
    schedule = create_schedule(optimizer, settings, epochs=1, steps_per_epoch=6)
    for seed in range(2):
        step(network, objective, optimizer, seed)
        schedule.step()
    rates = {group["name"]: group["lr"] for group in optimizer.param_groups}
    assert rates == pytest.approx({"network": 1e-2 * 0.75, "scale": 1e-3 * 0.75, "centers": 1e-2 * 0.75})
    assert [group["lr"] for part in optimizer.parts for group in part.param_groups] == list(rates.values())

    twin_network, twin, other = build(settings, sparse_centers=True)
    create_schedule(other, settings, epochs=1, steps_per_epoch=6)
    twin_network.load_state_dict(network.state_dict())
    twin.load_state_dict(objective.state_dict())
    other.load_state_dict(copy.deepcopy(optimizer_state(optimizer, None)))
    assert [step(network, objective, optimizer, 9), step(network, objective, optimizer, 10)] == [
        step(twin_network, twin, other, 9),
        step(twin_network, twin, other, 10),
    ]
    assert torch.equal(twin.loss_fn.centers, objective.loss_fn.centers)


def test_centers_alone_need_no_second_optimizer() -> None:
    objective = build_objective(LossConfig(top_k=3, sparse_centers=True), CLASSES, DIMENSION)
    groups = [{"name": "centers", "params": [objective.loss_fn.centers], "lr": 0.1}]
    assert type(build_optimizer(groups, OptimConfig(), objective)) is torch.optim.SGD


def test_many_classes_make_them_sparse(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not use_sparse_centers(LossConfig(), SPARSE_FROM - 1)
    assert use_sparse_centers(LossConfig(), SPARSE_FROM)
    assert not use_sparse_centers(LossConfig(sparse_centers=False), SPARSE_FROM)
    monkeypatch.setattr(ranks, "world_size", lambda: 2)
    assert not use_sparse_centers(LossConfig(), SPARSE_FROM)
    assert use_sparse_centers(LossConfig(sharded=True), SPARSE_FROM)
    with pytest.raises(InputError, match=r"set loss\.sharded true"):
        use_sparse_centers(LossConfig(sparse_centers=True), 5)


def test_sparse_centers_belong_to_the_default_loss() -> None:
    with pytest.raises(ValueError, match=r"loss\.sparse_centers belongs to HardGlobalSoftminLoss"):
        LossConfig(name="ProxyAnchorLoss", sparse_centers=True)


def test_a_run_that_is_stopped_ends_in_the_same_weights(
    photo_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*SMALL, "--data.root", str(photo_folder(images=8)), "--loss.sparse_centers", "true"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert train.main([*words, "--run.dir", str(whole)]) == 0
    calls, forward = [], Objective.forward

    def stop_at_the_fifth_step(self: Objective, embeddings: Tensor, *others: Tensor | None) -> Tensor:
        calls.append(len(embeddings))
        if len(calls) == 5:
            signal.raise_signal(signal.SIGTERM)
        return forward(self, embeddings, *others)

    with monkeypatch.context() as patch:
        patch.setattr(Objective, "forward", stop_at_the_fifth_step)
        assert train.main([*words, "--run.dir", str(cut)]) == 128 + signal.SIGTERM
    centers = load_state(cut / "state.safetensors")["train"]["objective"]["loss_fn.centers"]
    torch.testing.assert_close(centers.norm(dim=1), torch.ones(len(centers)))
    assert train.main([*words, "--run.dir", str(cut), "--resume"]) == 0

    expected, resumed = load_file(whole / "model.safetensors"), load_file(cut / "model.safetensors")
    assert all(torch.equal(expected[key], resumed[key]) for key in expected)
    records = [read_metrics(run / "metrics.jsonl") for run in (whole, cut)]
    assert [record["loss"] for record in records[0]] == [record["loss"] for record in records[1]]
    assert all(record["lr/centers"] > 0 for record in records[0])
