"""Time and memory of the loss in a training step: HGSL, pytorch-metric-learning's losses, and the bare product.

    python benchmarks/loss.py                       # C = 1e3, 1e4, 1e5, and 1e6 for the sparse forms
    python benchmarks/loss.py --classes 1000        # one of them

A step is forward and backward, with the gradients of embeddings, centers and scale; "+ SGD" and "+ SparseAdam" add an
optimizer step. All methods alternate in one process, and the fastest round of each counts, since other work on the
machine only adds time. Memory is measured in one process per method: the peak of the resident set over construction and
two steps, less the resident set before. On a processor with matrix units (``lscpu`` shows ``amx_bf16``) the chunked
forms search in bfloat16 first, from 32,768 classes on.
"""

import argparse
import json
import platform
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pytorch_metric_learning import losses as library_losses
from torch import Tensor, nn

from hgsl.common.latency import fastest_seconds
from hgsl.losses import HardGlobalSoftminLoss, sparse_optimizer

BATCH, DIMENSION, TOP_K = 128, 512, 10
SPARSE_ONLY = 1_000_000  # number of classes from which only the sparse forms run
Step = Callable[[], Any]


def batch(classes: int) -> tuple[Tensor, Tensor]:
    """Returns fixed embeddings ``(128, 512)`` and labels."""
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(BATCH, DIMENSION, generator=generator)
    return embeddings, torch.randint(classes, (BATCH,), generator=generator)


def product(classes: int) -> Step:
    """Returns ``embeddings @ centers.T`` as a step, without gradient or loss."""
    centers, (embeddings, _) = torch.randn(classes, DIMENSION), batch(classes)
    return lambda: embeddings @ centers.T


def step(build: Callable[[int], nn.Module], classes: int, optimizer: str | None = None) -> Step:
    """Returns forward, backward and, if one is named, a step of the sparse ``optimizer``."""
    loss_fn, (embeddings, labels) = build(classes), batch(classes)
    stepper = None
    if isinstance(loss_fn, HardGlobalSoftminLoss) and loss_fn.sparse_grad:
        stepper = sparse_optimizer(loss_fn, optimizer or "sgd", lr=1e-3)

    def run() -> None:
        loss_fn.zero_grad(set_to_none=True)
        loss_fn(embeddings.clone().requires_grad_(), labels).backward()
        if optimizer and stepper:
            stepper.step()

    return run


def hgsl(classes: int, **options: Any) -> nn.Module:
    """Builds our loss with its default settings, regularizer included."""
    return HardGlobalSoftminLoss(classes, DIMENSION, **options)


SPARSE = partial(hgsl, top_k=TOP_K, sparse_grad=True)
METHODS: dict[str, Callable[[int], Step]] = {
    "bare product": product,
    "HGSL dense (K = all)": partial(step, hgsl),
    f"HGSL chunked (K = {TOP_K})": partial(step, partial(hgsl, top_k=TOP_K)),
    "HGSL chunked + sparse": partial(step, SPARSE),
    "HGSL chunked + sparse + SGD": partial(step, SPARSE, optimizer="sgd"),
    "HGSL chunked + sparse + SparseAdam": partial(step, SPARSE, optimizer="sparse_adam"),
    "NormalizedSoftmaxLoss": partial(step, lambda classes: library_losses.NormalizedSoftmaxLoss(classes, DIMENSION)),
    "ArcFaceLoss": partial(step, lambda classes: library_losses.ArcFaceLoss(classes, DIMENSION)),
    "ProxyAnchorLoss": partial(step, lambda classes: library_losses.ProxyAnchorLoss(classes, DIMENSION)),
}
SPARSE_METHODS = ("bare product", "HGSL chunked + sparse", "HGSL chunked + sparse + SGD")


def measure_times(names: list[str], classes: int, rounds: int) -> dict[str, float]:
    """Returns the fastest of ``rounds`` rounds of each method, in seconds."""
    steps = {name: METHODS[name](classes) for name in names}
    return fastest_seconds(steps, rounds)


def measure_memory(name: str, classes: int) -> float:
    """Returns the peak of the resident set over construction and two steps, less that before, in bytes (Linux)."""
    METHODS[name](1000)()  # libraries, threads and their buffers
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    run = METHODS[name](classes)
    run()
    run()
    return resident("VmHWM") - before


def resident(field: str) -> float:
    """Returns a field of this process's memory status in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(float(line.split()[1]) for line in lines if line.startswith(field))


def in_subprocess(*arguments: object) -> Any:
    """Runs this file in a new process, and returns the JSON that it prints."""
    command = [sys.executable, __file__, *map(str, arguments)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def table(classes: int, times: dict[str, float], memory: dict[str, float]) -> str:
    """Returns the results as Markdown; ratios are to the bare product."""
    size = 4 * classes * DIMENSION
    rows = [
        f"| {name} | {1e3 * seconds:.1f} | {seconds / times['bare product']:.2f} "
        f"| {memory[name] / 2**20:.0f} | {memory[name] / size:.2f} |"
        for name, seconds in times.items()
    ]
    head = f"| C = {classes:,} | ms | of the product | peak MiB | of the centers' {size / 2**20:.0f} MiB |"
    return "\n".join([head, "|---|---:|---:|---:|---:|", *rows])


def main() -> None:
    """Measures every method and prints a table for each number of classes."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--classes", type=int, nargs="+", default=[1000, 10_000, 100_000, SPARSE_ONLY])
    parser.add_argument("--rounds", type=int, default=15, help="rounds of each method")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--part", choices=["times", "memory"], help=argparse.SUPPRESS)
    parser.add_argument("--name", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.part == "times":
        classes = options.classes[0]
        names = [name for name in METHODS if classes < SPARSE_ONLY or name in SPARSE_METHODS]
        print(json.dumps(measure_times(names, classes, options.rounds)))
        return
    if options.part == "memory":
        print(json.dumps(measure_memory(options.name, options.classes[0])))
        return
    print(f"{platform.processor() or platform.machine()}, {options.threads} threads, torch {torch.__version__}")
    for classes in options.classes:
        common = ("--classes", classes, "--threads", options.threads)
        times = in_subprocess(*common, "--part", "times", "--rounds", options.rounds)
        memory = {name: in_subprocess(*common, "--part", "memory", "--name", name) for name in times}
        print(f"\n{table(classes, times, memory)}", flush=True)


if __name__ == "__main__":
    main()
