"""Helpers that several test files share: short runs, checks of errors, clustered vectors, and processes."""

import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing import connection
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


def launch_ranks(script: str | Path, *words: object, processes: int) -> subprocess.CompletedProcess[str]:
    """Runs a Python file as so many ranks, with the variables that torchrun sets; as :func:`launch`, but sooner.

    The ranks are forked from a process that has imported torch and hgsl. As under torchrun, one that fails ends the
    others.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1])}
    world = {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes), **address}
    with tempfile.TemporaryDirectory() as outputs:
        ranks = []
        for rank in range(processes):
            variables = environment(RANK=str(rank), LOCAL_RANK=str(rank), **world)
            arguments = ([str(script), *map(str, words)], variables, os.getcwd(), f"{outputs}/{rank}")
            ranks.append(_fork_server().Process(target=_run_script, args=arguments))
            ranks[-1].start()
        _join(ranks, 240)
        out, err = (
            "".join(Path(f"{outputs}/{rank}.{kind}").read_text() for rank in range(processes))
            for kind in ("out", "err")
        )
    return subprocess.CompletedProcess([], next((rank.exitcode for rank in ranks if rank.exitcode), 0), out, err)


def spawn(work: Callable[..., object], world_size: int, folder: Path, *arguments: object) -> None:
    """Calls ``work(rank, world_size, *arguments)`` in as many processes, which form a gloo group.

    Args:
        work: A module-level function, since it is pickled.
        folder: A new folder, for the rendezvous of the processes.
    """
    _fork_server()
    arguments = (work, world_size, str(folder), *arguments)
    torch.multiprocessing.start_processes(_process, arguments, nprocs=world_size, start_method="forkserver")


def _fork_server() -> Any:
    """Returns the context of processes that are forked from one which has imported torch and hgsl."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "hgsl.cli.train", "hgsl.engine.run", "hgsl.engine.evaluation"])
    return context


def _join(ranks: list[Any], seconds: float) -> None:
    """Waits until all processes have ended; ends the others when one fails or ``seconds`` are over."""
    deadline = time.monotonic() + seconds
    while alive := [rank for rank in ranks if rank.exitcode is None]:
        connection.wait([rank.sentinel for rank in alive], timeout=1)
        if any(rank.exitcode for rank in ranks) or time.monotonic() > deadline:
            for rank in alive:
                rank.terminate()


def _run_script(words: list[str], variables: dict[str, str], folder: str, output: str) -> None:
    torch.set_num_threads(1)
    os.chdir(folder)
    os.environ.update(variables)
    for descriptor, kind in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{output}.{kind}", os.O_WRONLY | os.O_CREAT), descriptor)
    sys.argv = words
    runpy.run_path(words[0], run_name="__main__")


def _process(rank: int, work: Callable[..., object], world_size: int, folder: str, *arguments: object) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world_size)
    try:
        work(rank, world_size, *arguments)
    finally:
        dist.destroy_process_group()
