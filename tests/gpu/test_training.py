"""Training on the device: resumed, skipped, queued, captured, compiled, out of memory, and by two processes."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.gpu import cifar_steps
from hgsl.cli import train
from hgsl.engine.folder.checkpoint import load_state
from hgsl.engine.folder.logging import read_metrics
from hgsl.engine.loop import loop, state
from hgsl.engine.loop.train_state import TrainState
from tests.gpu.conftest import NAME, ON_CUDA
from tests.helpers import ROOT, SMALL, fails, launch

WORDS = [*SMALL, "--loss.centers", "random", "--optim.warmup", "0", "--run.device", NAME, "--train.epochs", "3"]
QUEUED = ["--optim.fused", "true", "--run.log_every", "5"]
MODES = {"plain": [], "queued": QUEUED, "mean": ["--train.accumulate", "2", "--train.ema", "0.9"]}
MASKS = ["--sparsify.granularity", "weight", "--sparsify.mask_lr", "0.05"]
pytestmark = pytest.mark.usefixtures("in_tmp_path")


@pytest.fixture
def words(photo_folder: Callable[..., Path]) -> list[str]:
    return [*WORDS, "--data.root", str(photo_folder(images=8))]


def losses(run: str) -> list[float]:
    return [record["loss"] for record in read_metrics(Path(run) / "metrics.jsonl")]


def weights(run: str) -> dict[str, torch.Tensor]:
    return load_file(Path(run) / "model.safetensors")


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_a_resumed_run_ends_with_the_same_weights(words: list[str], mode: list[str]) -> None:
    words = [
        *words,
        *mode,
        "--run.deterministic",
        "true",
        "--train.save_every",
        "4",
        "--train.keep",
        "9",
        "--run.dir",
        "a",
    ]
    assert train.main(words) == 0
    end, numbers = weights("a"), losses("a")
    Path("a/state.safetensors").write_bytes(Path("a/states/000000004.safetensors").read_bytes())
    for name in ("report.json", "model.safetensors"):
        Path("a", name).unlink()
    assert train.main([*words, "--resume"]) == 0
    assert losses("a") == numbers
    for name, value in weights("a").items():
        assert torch.equal(value, end[name]), name


def test_optimizer_and_mean_are_on_the_device(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    states: list[TrainState] = []
    real = loop.train_step
    monkeypatch.setattr(loop, "train_step", lambda given, *others: (states.append(given), real(given, *others))[1])
    assert train.main([*words, *QUEUED, "--train.ema", "0.9", "--run.dir", "a"]) == 0
    last = states[-1]
    tensors = [value for values in last.optimizer.state.values() for value in values.values() if value.ndim]
    assert tensors
    assert {value.device.type for value in [*tensors, *last.ema.module.parameters()]} == {torch.device(NAME).type}
    assert json.loads(Path("a/report.json").read_text())["device"].startswith(torch.device(NAME).type)


def test_queued_steps_give_the_losses_of_ordinary_ones(words: list[str]) -> None:
    deterministic = ["--run.deterministic", "true", "--optim.fused", "true"]
    assert train.main([*words, *deterministic, "--run.dir", "a"]) == 0
    assert train.main([*words, *deterministic, "--run.log_every", "5", "--run.dir", "b"]) == 0
    assert losses("a") == pytest.approx(losses("b"), rel=1e-5)


def test_a_queued_step_never_waits_for_the_gpu(device: torch.device, needs_cuda: None) -> None:
    steps = cifar_steps(device, 8)
    for name in ("queued", "CUDA graph"):
        for _ in range(5):  # allocations, library loading, the capture
            steps[name]()
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            numbers = [steps[name]() for _ in range(3)]
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert torch.stack(numbers)[:, 0].isfinite().all()


def test_a_step_that_is_not_finite_is_named_and_the_state_kept(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    real = loop.train_step

    def step(given: TrainState, batch: tuple, *others: object) -> torch.Tensor:
        if given.step == 9:
            batch[0][1].fill_(math.nan)
        return real(given, batch, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "train_step", step)
    assert "the loss is nan at step 10: " in fails(train.main, [*words, *QUEUED, "--run.dir", "a"], capsys)
    assert len(Path("a/nonfinite_batch.txt").read_text().splitlines()) == 4
    saved = load_state(Path("a/state.safetensors"))["train"]
    assert saved["step"] < 10
    assert all(value.isfinite().all() for value in saved["model"].values() if value.is_floating_point())


def test_a_float16_scaler_skips_an_overflow_and_lowers_its_scale(
    words: list[str], needs_cuda: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = state.GradScaler
    monkeypatch.setattr(state, "GradScaler", lambda kind, enabled: real(kind, init_scale=2.0**60, enabled=enabled))
    for mode in ([], QUEUED):
        folder = f"run_{len(mode)}"
        assert train.main([*words, *mode, "--run.precision", "float16", "--run.dir", folder]) == 0
        assert all(math.isfinite(loss) for loss in losses(folder))
        scaler = load_state(Path(folder) / "state.safetensors")["train"]["scaler"]
        assert 0 < scaler["scale"] < 2.0**60
        assert all(value.isfinite().all() for value in weights(folder).values() if value.is_floating_point())


@pytest.mark.parametrize("masks", [[], MASKS], ids=["weights", "masks"])
def test_a_captured_step_gives_the_numbers_of_an_ordinary_one(
    words: list[str], needs_cuda: None, capsys: pytest.CaptureFixture, masks: list[str]
) -> None:
    words = [*words, *QUEUED, *masks, "--run.precision", "float32", "--train.accumulate", "2", "--optim.clip", "0.5"]
    words += [] if masks else ["--train.ema", "0.9"]
    assert train.main([*words, "--run.dir", "a"]) == 0
    capsys.readouterr()
    assert train.main([*words, "--run.cuda_graphs", "on", "--train.keep", "9", "--run.dir", "b"]) == 0
    assert "no CUDA graph" not in capsys.readouterr().out
    assert losses("b") == pytest.approx(losses("a"), rel=1e-3)
    for name, value in weights("a").items():
        torch.testing.assert_close(weights("b")[name], value, rtol=1e-2, atol=1e-3, msg=name)
    # Resumed, it continues with ordinary steps and then a graph of its own.
    states = sorted(Path("b/states").iterdir())
    numbers = losses("b")
    Path("b/state.safetensors").write_bytes(states[0].read_bytes())
    for name in ("report.json", "model.safetensors"):
        Path("b", name).unlink()
    assert train.main([*words, "--run.cuda_graphs", "on", "--train.keep", "9", "--run.dir", "b", "--resume"]) == 0
    assert losses("b") == pytest.approx(numbers, rel=1e-3)


def test_auto_captures_or_says_why_not(words: list[str], capsys: pytest.CaptureFixture) -> None:
    assert train.main([*words, *QUEUED, "--run.cuda_graphs", "auto", "--run.dir", "a"]) == 0
    if not ON_CUDA:
        assert "no CUDA graph, every step is launched by itself: the device is cpu" in capsys.readouterr().out
    assert all(math.isfinite(loss) for loss in losses("a"))


@pytest.mark.slow
def test_a_compiled_network_trains(words: list[str], needs_cuda: None) -> None:
    assert train.main([*words, "--run.precision", "float32", "--run.dir", "a"]) == 0
    assert train.main([*words, "--run.precision", "float32", "--run.compile", "true", "--run.dir", "b"]) == 0
    assert losses("b")[0] == pytest.approx(losses("a")[0], rel=1e-3)


def test_a_full_gpu_is_one_line_and_the_state_is_kept(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    real = loop.train_step

    def step(given: TrainState, *others: object) -> torch.Tensor:
        if given.step == 9:
            if not ON_CUDA:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 EiB. GPU 0 is full")
            torch.empty(2**60, device=NAME)
        return real(given, *others)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", step)
        message = fails(train.main, [*words, "--train.save_every", "4", "--run.dir", "a"], capsys)
    assert message.startswith("error: CUDA out of memory. Tried to allocate ")
    assert "lower train.batch_size" in message
    assert load_state(Path("a/state.safetensors"))["train"]["step"] == 8
    assert train.main([*words, "--train.save_every", "4", "--run.dir", "a", "--resume"]) == 0


@pytest.mark.slow
def test_two_processes_share_the_device_over_gloo(words: list[str]) -> None:
    words = [*words, "--train.batch_size", "8", "--loss.both_sides", "0", "--run.precision", "float32"]
    assert train.main([*words, "--run.dir", "one"]) == 0
    result = launch(ROOT / "tools" / "train.py", *words, "--run.dir", "two", processes=2)
    assert result.returncode == 0, result.stderr
    assert losses("two") == pytest.approx(losses("one"), abs=1e-3)
    sharded = [*words, "--loss.sharded", "true", "--model.embedding_size", "16", "--run.dir", "sharded"]
    result = launch(ROOT / "tools" / "train.py", *sharded, processes=2)
    assert result.returncode == 0, result.stderr
