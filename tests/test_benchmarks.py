"""Benchmarks in miniature: the tables that they print, from runs on tiny data on the CPU."""

import signal
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import gpu, tickets
from tests.helpers import ROOT, launch


def report(accuracy: float, density: float) -> dict[str, object]:
    return {"scores": {"accuracy": accuracy}, "density": density, "seconds": 120.0}


def test_the_table_of_tickets_states_whether_the_claim_holds() -> None:
    reports = {
        "dense": [report(0.905, 1.0), report(0.907, 1.0)],
        "ticket, s0 = -0.1": [report(0.90, 0.1), report(0.91, 0.12)],
        "ticket, s0 = 0.0": [report(0.914, 0.24), report(0.918, 0.26)],
        "ticket, s0 = 0.1": [],
    }
    text = tickets.table(reports, 2)
    assert "| dense | 2 of 2 | 1.000 | 90.60 | 90.50, 90.70 | 2.0 |" in text
    assert "| ticket, s0 = 0.0 | 2 of 2 | 0.250 | 91.60 | 91.40, 91.80 | 2.0 |" in text
    assert "| ticket, s0 = 0.1 | 0 of 2 | not run | not run | | |" in text
    assert "Tickets: reached, ticket, s0 = 0.0 has 91.60 %." in text
    assert "Dense: reached, 90.60 %." in text
    text = tickets.table({"dense": [report(0.89, 1.0)], "ticket, s0 = 0.0": [report(0.93, 0.5)]}, 1)
    assert "Tickets: not reached, no ticket has 20 to 30 % of the weights." in text
    assert "Dense: not reached, 89.00 %." in text


def test_a_run_of_the_tickets_continues_where_it_was_stopped(tmp_path: Path) -> None:
    options = Namespace(root="cifar", device="cuda:0", plain=False, flags=["--train.epochs", "3"])
    words = tickets.command(options, tmp_path, ["--rounds", "0"], 1)
    assert words[-2:] == ["--train.epochs", "3"]
    assert "--run.cuda_graphs" in words
    (tmp_path / "config.yaml").touch()
    assert tickets.command(options, tmp_path, ["--rounds", "0"], 1)[-1] == "--resume"
    assert "--run.cuda_graphs" not in tickets.command(Namespace(**{**vars(options), "plain": True}), tmp_path, [], 0)


def test_a_failed_run_of_the_tickets_stops_those_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    codes = iter(["raise SystemExit(3)", "import signal; signal.pause()"])
    processes: list[subprocess.Popen[bytes]] = []
    start = subprocess.Popen
    monkeypatch.setattr(tickets, "names", lambda: {"dense": [], "ticket, s0 = 0.0": []})
    monkeypatch.setattr(tickets, "command", lambda *_: [sys.executable, "-c", next(codes)])
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: processes.append(start(*a, **k)) or processes[-1])
    with pytest.raises(SystemExit, match="dense_seed0 failed with status 3"):
        tickets.run_all(Namespace(out=tmp_path, seeds=[0], minutes=5, parallel=2))
    assert [process.poll() for process in processes] == [3, -signal.SIGTERM]


@pytest.fixture
def tiny_cifar(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    for part, images in (("train", 20), ("test", 6)):
        for label in range(2):
            folder = tmp_path / "cifar" / part / f"class_{label}"
            folder.mkdir(parents=True)
            for number in range(images):
                pixels = generator.integers(0, 128, (32, 32, 3)) + 127 * label
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
    return tmp_path / "cifar"


@pytest.mark.slow
def test_the_published_experiment_in_miniature(tiny_cifar: Path, tmp_path: Path) -> None:
    words = ["--root", tiny_cifar, "--out", tmp_path / "out", "--seeds", "0", "--device", "cpu", "--parallel", "1"]
    words += ["--train.epochs", "3", "--train.batch_size", "8", "--optim.step_epochs", "[1]", "--run.threads", "1"]
    result = launch(ROOT / "benchmarks" / "tickets.py", *words)
    assert result.returncode == 0, result.stderr
    assert result.stdout == (tmp_path / "out" / "tickets.md").read_text()
    rows = [line.split(" | ") for line in result.stdout.splitlines()[2:6]]
    assert [row[0] for row in rows] == ["| dense", "| ticket, s0 = -0.1", "| ticket, s0 = 0.0", "| ticket, s0 = 0.1"]
    assert {row[1] for row in rows} == {"1 of 1"}
    densities = [float(row[2]) for row in rows]
    assert densities[0] == 1.0 >= densities[3] >= densities[2] >= densities[1]
    assert densities[1] < 0.5, "masks that start closed and train for a few steps"
    again = launch(ROOT / "benchmarks" / "tickets.py", *words)
    assert again.stdout == result.stdout
    assert "started" not in again.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_benchmark_of_a_gpu_needs_one(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["gpu.py"])
    assert gpu.main() == 2
    error = "error: no CUDA device here: --device cpu --tiny tries this command without one\n"
    assert capsys.readouterr().err == error


@pytest.mark.slow
def test_the_benchmark_of_a_gpu_in_miniature(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["gpu.py", "--device", "cpu", "--tiny"])
    status = gpu.main()
    printed = capsys.readouterr().out
    assert status == 0, printed
    assert "FAILED" not in printed
    for line in ("| loss, sparse |", "| training step, queued |", "| ArcFaceLoss |", "| 50 queries, 400 images |"):
        assert line in printed
    assert "All checks passed" in printed
    assert "| hgsl |" in printed, "the training table"


@pytest.mark.slow
def test_the_benchmark_of_stores_in_miniature() -> None:
    pytest.importorskip("milvus_lite", reason="milvus-lite is not installed: pip install 'hgsl[milvus]'")
    stores = ("folder flat", "folder IVF", "milvus-lite")
    words = ["--rows", "1500", "--dimensions", "8", "--queries", "8", "--stores", *stores]
    result = launch(ROOT / "benchmarks" / "search.py", *words)
    assert result.returncode == 0, result.stderr
    rows = {line.split(" | ")[0]: line.split(" | ")[1:] for line in result.stdout.splitlines() if line[:1] == "|"}
    columns = rows["| store"]
    for name in stores:
        values = dict(zip(columns, rows[f"| {name}"], strict=True))
        assert float(values["recall@10"]) > (0.9 if name != "folder IVF" else 0)
        assert 0 < float(values["add 1 wrote KB"]) < 100
    assert {"| folder IVF / folder flat", "| milvus-lite / folder flat"} < rows.keys()
