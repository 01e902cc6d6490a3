"""Steps that are skipped on the device, read together, or replayed, against ordinary ones; here all on the CPU."""

import copy
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from timm.utils import ModelEmaV3
from torch import nn
from torch.amp import GradScaler

from hgsl import HardGlobalSoftminLoss, create_embedder
from hgsl.cli import train
from hgsl.config import Config, OptimConfig, RunConfig
from hgsl.engine.folder.logging import read_metrics
from hgsl.engine.loop import graphs, loop
from hgsl.engine.loop.graphs import GraphedStep, average_weights, capture_obstacle, step_function
from hgsl.engine.loop.step import train_step
from hgsl.engine.loop.train_state import Batch, LoopOptions, TrainState
from hgsl.engine.parts.objective import Objective
from hgsl.engine.parts.optim import create_optimizer, create_schedule, parameter_groups
from hgsl.engine.parts.shards import load_optimizer_state, optimizer_state
from hgsl.engine.runtime import Runtime
from hgsl.losses import deferred_checks
from tests.helpers import SMALL, fails

RUNTIME = Runtime(torch.device("cpu"), torch.float32, 0)
OPTIONS = LoopOptions(4, 3, 2, 0.5, "none", 100, log_every=4)
SETTINGS = {
    "adamw": OptimConfig(fused=True),
    "momentum": OptimConfig(name="sgd", lr=0.1, fused=True),
    "sgd": OptimConfig(name="sgd", momentum=0.0, fused=True),
}
OPTIMIZERS = pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)


@pytest.fixture
def on_device(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Lets the CPU take the steps of a GPU: nothing is read before the numbers of a step are."""
    monkeypatch.setattr("hgsl.engine.loop.step.host_decides", lambda *_: False)
    monkeypatch.setattr("hgsl.losses.deferral.DEFERRING_DEVICES", ("cpu",))
    with deferred_checks():
        yield


def new_state(settings: OptimConfig, *, ema: bool = False, channels_last: bool = False) -> TrainState:
    torch.manual_seed(0)
    model = create_embedder("test_resnet", embedding_size=8, weights="none")
    if channels_last:
        model.to(memory_format=torch.channels_last)
    objective = Objective(HardGlobalSoftminLoss(5, 8, top_k=3, alpha=0.4))
    optimizer = create_optimizer(parameter_groups(model, objective, settings), settings)
    return TrainState(
        model,
        objective,
        model,
        objective,
        optimizer,
        create_schedule(optimizer, settings, OPTIONS.epochs, OPTIONS.steps_per_epoch),
        GradScaler("cpu", enabled=False),
        ModelEmaV3(model, decay=0.9, use_warmup=True) if ema else None,
    )


def batches(count: int) -> list[Batch]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(4, 3, 32, 32, generator=generator), torch.randint(5, (4,), generator=generator), torch.arange(4))
        for _ in range(count)
    ]


def run(state: TrainState, step: Callable, steps: list[Batch]) -> torch.Tensor:
    numbers = []
    for batch in steps:
        numbers.append(step(state, batch, OPTIONS, RUNTIME))
        state.schedule.step()
        state.step += 1
    return torch.stack(numbers)


def trained(state: TrainState) -> dict[str, torch.Tensor]:
    """Parameters and optimizer state, by name."""
    tensors = dict([*state.model.named_parameters(), *state.objective.named_parameters()])
    for index, values in state.optimizer.state_dict()["state"].items():
        tensors |= {f"{index}.{name}": value for name, value in values.items()}
    return {name: value.detach().clone() for name, value in tensors.items()}


@OPTIMIZERS
@pytest.mark.parametrize("broken", [0, 2])
def test_a_step_that_is_not_finite_changes_nothing(on_device: None, settings: OptimConfig, broken: int) -> None:
    state = new_state(settings)
    steps = batches(4)
    steps[broken][0][3, 0, 5, 5] = math.nan
    before: list[dict[str, torch.Tensor]] = []

    def recorded(*arguments: object) -> torch.Tensor:
        before.append(trained(state))
        return train_step(*arguments)  # type: ignore[arg-type]

    numbers = run(state, recorded, steps)
    assert numbers[:, 0].isfinite().tolist() == [number != broken for number in range(4)]
    for name, value in before[broken].items():
        assert torch.equal(value, before[broken + 1][name]), name
    end = trained(state)
    assert all(value.isfinite().all() for value in end.values())
    assert not torch.equal(end["loss_fn.centers"], before[3]["loss_fn.centers"]), "the others move them"


@OPTIMIZERS
def test_steps_that_nobody_reads_equal_those_of_the_host(
    monkeypatch: pytest.MonkeyPatch, settings: OptimConfig
) -> None:
    states = [new_state(settings, ema=True) for _ in range(2)]
    expected = run(states[0], train_step, batches(4))
    monkeypatch.setattr("hgsl.engine.loop.step.host_decides", lambda *_: False)
    assert torch.equal(run(states[1], train_step, batches(4)), expected)
    for state in states:
        state.ema.module.eval()
    for name, value in states[0].state_dict()["ema"].items():
        assert torch.equal(value, states[1].state_dict()["ema"][name]), name
    for name, value in trained(states[0]).items():
        assert torch.equal(value, trained(states[1])[name]), name


@OPTIMIZERS
def test_replayed_steps_equal_ordinary_ones(
    on_device: None, monkeypatch: pytest.MonkeyPatch, settings: OptimConfig
) -> None:
    captured = []
    monkeypatch.setattr(graphs, "capture", lambda step, stream: captured.append(step) or step)
    results = []
    for replays in (False, True):
        state, steps = new_state(settings, ema=True), batches(8)
        step = GraphedStep(train_step, state, OPTIONS, RUNTIME)  # learning rates in float32, on the device
        numbers = run(state, step if replays else train_step, steps[:6])
        state.objective.loss_fn.set_top_k(2)  # is captured anew
        results.append(torch.cat([numbers, run(state, step if replays else train_step, steps[6:])]))
        results.append(state.state_dict()["ema"])
    assert len(captured) == 2
    expected, expected_mean, numbers, mean = results
    assert torch.equal(numbers, expected)
    assert len({float(loss) for loss in numbers[:, 0]}) == 8, "every step reads its own images"
    for name, value in expected_mean.items():
        torch.testing.assert_close(mean[name], value, msg=name)
    assert not torch.equal(mean["projection.weight"], state.model.projection.weight)
    rates = [group["lr"] for group in state.state_dict()["optimizer"]["param_groups"]]
    assert rates == pytest.approx(state.rates(), rel=1e-6)
    assert all(isinstance(rate, float) for rate in rates)


def test_a_running_mean_with_its_weight_on_the_device() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    one, two = ModelEmaV3(model, decay=0.9), ModelEmaV3(copy.deepcopy(model), decay=0.9)
    with torch.no_grad():
        model(torch.randn(5, 3))
        for parameter in model.parameters():
            parameter.add_(1)
    one.update(model)
    average_weights(two, model, torch.tensor(0.1))
    for name, value in one.module.state_dict().items():
        torch.testing.assert_close(two.module.state_dict()[name], value, msg=name)
    assert two.module[1].num_batches_tracked == 1


def test_what_cannot_be_captured_is_named(capsys: pytest.CaptureFixture) -> None:
    state = new_state(OptimConfig(fused=True))
    assert capture_obstacle(state, RUNTIME) == "the device is cpu"
    on_cuda = Runtime(torch.device("cuda"), torch.bfloat16, 0)
    assert capture_obstacle(state, on_cuda) is None
    assert capture_obstacle(new_state(OptimConfig()), on_cuda) == "the optimizer is not fused"
    state.teacher = lambda ids: torch.zeros(len(ids), 8)
    assert capture_obstacle(state, on_cuda) == "the teacher's embeddings are read on the host"
    state.teacher = None
    state.model.backbone.grad_checkpointing = True
    assert capture_obstacle(state, on_cuda) == "model.checkpointing restores random states"
    state.objective.loss_fn = nn.TripletMarginLoss()
    assert capture_obstacle(state, on_cuda) == "TripletMarginLoss may read from the GPU"
    options = LoopOptions(4, 3, 1, None, "none", 100, log_every=4, cuda_graphs="auto")
    assert step_function(train_step, state, options, RUNTIME) is train_step
    assert "no CUDA graph, every step is launched by itself: the device is cpu" in capsys.readouterr().out


def test_a_failed_capture_continues_with_ordinary_steps(
    on_device: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def refuse(step: object, stream: object) -> None:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(graphs, "capture", refuse)
    states = [new_state(OptimConfig(fused=True)) for _ in range(2)]
    expected = run(states[0], train_step, batches(5))
    numbers = run(states[1], GraphedStep(train_step, states[1], OPTIONS, RUNTIME), batches(5))
    torch.testing.assert_close(numbers, expected, rtol=1e-3, atol=1e-5)
    assert "cannot be captured (operation not permitted when stream is capturing)" in capsys.readouterr().out


@pytest.mark.parametrize("fused", [(False, True), (True, False)])
def test_a_state_loads_into_another_implementation(fused: tuple[bool, bool]) -> None:
    first, second = (new_state(OptimConfig(fused=value), channels_last=True) for value in fused)
    run(first, train_step, batches(2))
    saved = copy.deepcopy(optimizer_state(first.optimizer, None))
    for values in saved["state"].values():  # as from a file
        values.update({name: value.contiguous() for name, value in values.items()})
    load_optimizer_state(second.optimizer, saved, None)
    assert {bool(group["fused"]) for group in second.optimizer.param_groups} == {fused[1]}
    for name, value in first.optimizer.state_dict()["state"][0].items():
        loaded = second.optimizer.state_dict()["state"][0][name]
        assert torch.equal(loaded, value)
        assert loaded.stride() == value.stride(), "fused kernels need the memory format of the parameter"
    second.model.load_state_dict(first.model.state_dict())
    assert run(second, train_step, batches(1)).isfinite().all()


WORDS = [*SMALL, "--loss.both_sides", "0", "--train.epochs", "3", "--loss.centers", "random"]


def without_times(path: Path) -> list[dict[str, float]]:
    return [
        {name: value for name, value in record.items() if name not in ("images_per_second", "data_wait_share")}
        for record in read_metrics(path / "metrics.jsonl")
    ]


@pytest.mark.usefixtures("in_tmp_path")
def test_steps_read_together_are_logged_and_saved_alike(photo_folder: Callable[..., Path]) -> None:
    words = [*WORDS, "--data.root", str(photo_folder(images=8)), "--train.save_every", "4", "--train.keep", "9"]
    assert train.main([*words, "--run.dir", "one"]) == 0
    assert train.main([*words, "--run.dir", "five", "--run.log_every", "5"]) == 0
    assert without_times(Path("one")) == without_times(Path("five"))
    assert Path("one/model.safetensors").read_bytes() == Path("five/model.safetensors").read_bytes()
    states = [sorted(path.name for path in Path(run, "states").iterdir()) for run in ("one", "five")]
    assert states[0] == states[1]


@pytest.mark.usefixtures("in_tmp_path")
def test_a_step_that_is_not_finite_is_named_when_it_is_read(
    on_device: None, photo_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    real, steps = loop.train_step, []

    def step(state: TrainState, batch: Batch, *others: object) -> torch.Tensor:
        steps.append(batch[2].tolist())
        if state.step == 7:
            batch[0][1].fill_(math.nan)
        return real(state, batch, *others)

    monkeypatch.setattr(loop, "train_step", step)
    words = [*WORDS, "--data.root", str(photo_folder(images=8)), "--run.dir", "out", "--optim.fused", "true"]
    assert "the loss is nan at step 8: " in fails(
        train.main, [*words, "--run.log_every", "4", "--train.epochs", "4"], capsys
    )
    assert len(steps) > 8, "the steps after it were queued"
    assert [record["step"] for record in without_times(Path("out"))] == list(range(1, 8))
    assert len(Path("out/nonfinite_batch.txt").read_text().splitlines()) == 4


def test_settings_that_exclude_each_other() -> None:
    with pytest.raises(ValueError, match=r"run.cuda_graphs auto needs run.log_every above 1"):
        RunConfig(cuda_graphs="auto", log_every=1)
    with pytest.raises(ValueError, match=r"run.cuda_graphs on needs optim.fused true"):
        Config(run=RunConfig(cuda_graphs="on"), optim=OptimConfig(fused=False))
    with pytest.raises(ValueError, match=r"run.autotune .* run.deterministic"):
        RunConfig(autotune=True, deterministic=True)
    with pytest.raises(ValueError, match=r"optim.fused is for adamw and sgd, but optim.name is lion"):
        OptimConfig(name="lion", fused=True)


@pytest.mark.usefixtures("in_tmp_path")
def test_a_run_computes_float32_products_in_ieee_arithmetic_and_restores_the_setting(
    photo_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, inside = loop.train_step, []

    def step(*arguments: object) -> torch.Tensor:
        inside.append((torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32))
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "train_step", step)
    assert torch.backends.cudnn.allow_tf32, "PyTorch's default"
    assert train.main([*WORDS, "--data.root", str(photo_folder()), "--run.dir", "out", "--train.epochs", "1"]) == 0
    assert set(inside) == {("highest", False)}
    assert torch.backends.cudnn.allow_tf32
    assert json.loads(Path("out/report.json").read_text())["precision"] == "float32"
