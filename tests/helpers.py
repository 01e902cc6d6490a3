"""Helpers that several test files share: short runs, checks of errors, clustered vectors, and processes."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from numpy.typing import NDArray

import hgsl

ROOT = Path(hgsl.__file__).parents[1]  # of the clone

# A network of 32 pixels on one thread, for any data set and command that trains.
TINY = [
    *("--model.backbone", "test_resnet", "--model.weights", "none", "--data.image_size", "32", "--data.workers", "0"),
    *("--run.device", "cpu", "--run.precision", "float32", "--run.threads", "1"),
]
# A run of seconds on a folder of images, which `--data.root` must name.
SMALL = [
    *("--config", str(ROOT / "configs" / "folder.yaml"), *TINY, "--train.epochs", "2", "--train.batch_size", "4"),
    *("--loss.top_k", "2", "--eval.before", "false", "--eval.page", "false"),
]


def fails(main: Callable[[list[str]], int], words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Runs a command that must refuse its arguments, and returns the one line that it prints."""
    assert main(list(words)) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    return message


def clusters(
    seed: int = 0,
    *,
    count: int = 120,
    classes: int = 10,
    width: int = 8,
    noise: float = 0.8,
    center_seed: int | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Returns (count, width) unit vectors around random class centers, and their labels.

    With a ``center_seed``, sets of different ``seed`` are drawn from the same classes.
    """
    generator = np.random.default_rng(seed)
    center_generator = generator if center_seed is None else np.random.default_rng(center_seed)
    labels = np.arange(count) % classes
    centers = center_generator.standard_normal((classes, width))
    vectors = centers[labels] + noise * generator.standard_normal((count, width))
    return np.float32(vectors / np.linalg.norm(vectors, axis=1, keepdims=True)), labels


def environment(**variables: str) -> dict[str, str]:
    """Returns the environment of a process with the import path of this one and a single thread."""
    paths = [str(ROOT), *(path for path in sys.path if path)]
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths), **variables}


def command(script: str | Path, *words: object, processes: int = 1) -> list[str]:
    """Returns the command that runs a Python file, under torchrun if ``processes`` is more than 1."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return [sys.executable, *(launcher if processes > 1 else []), str(script), *map(str, words)]


def launch(script: str | Path, *words: object, processes: int = 1, **options: Any) -> subprocess.CompletedProcess[str]:
    """Runs a Python file to its end, and returns its status and what it printed."""
    options = {"env": environment(), "capture_output": True, "text": True, "timeout": 240} | options
    return subprocess.run(command(script, *words, processes=processes), **options)


def run_code(code: str, *words: object) -> str:
    """Runs Python code in a fresh process that must succeed, and returns what it prints."""
    arguments = [sys.executable, "-c", code, *map(str, words)]
    done = subprocess.run(arguments, env=environment(), capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout


def spawn(work: Callable[..., object], world_size: int, folder: Path, *arguments: object) -> None:
    """Calls ``work(rank, world_size, *arguments)`` in as many processes, which form a gloo group.

    Args:
        work: A module-level function, since it is pickled.
        folder: A new folder, for the rendezvous of the processes.
    """
    torch.multiprocessing.spawn(_process, (work, world_size, str(folder), *arguments), nprocs=world_size)


def _process(rank: int, work: Callable[..., object], world_size: int, folder: str, *arguments: object) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world_size)
    try:
        work(rank, world_size, *arguments)
    finally:
        dist.destroy_process_group()
