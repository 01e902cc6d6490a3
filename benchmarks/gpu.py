"""Checks and tables of one GPU: parity with float64 and the CPU, then times against peers and floors, as Markdown.

    python benchmarks/gpu.py                        # at most 8 minutes; paste what it prints
    python benchmarks/gpu.py --device cpu --tiny    # in miniature, without a GPU

A part that the time does not allow is named and left out. The exit status is 1 if a check fails.
"""

import argparse
import copy
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.amp import GradScaler

from hgsl import HardGlobalSoftminLoss, evaluate_embeddings
from hgsl.common.device import dtype_name
from hgsl.common.precision import float32_products
from hgsl.config import MaskConfig, OptimConfig
from hgsl.data.cifar10 import MEAN, STD
from hgsl.engine.loop.graphs import GraphedStep
from hgsl.engine.loop.step import train_step
from hgsl.engine.loop.train_state import LoopOptions, TrainState
from hgsl.engine.parts.masking import MaskedObjective
from hgsl.engine.parts.objective import Objective
from hgsl.engine.parts.optim import create_optimizer, create_schedule
from hgsl.engine.runtime import Runtime
from hgsl.engine.sparsify.problems import Classifier
from hgsl.losses import deferred_checks
from hgsl.models.resnet_cifar import resnet20
from hgsl.sparsity import sparsify

HERE = Path(__file__).parent
WIDTH, TOP_K, CLASS_SIZE = 512, 10, 20
FULL = {
    "batch": 512,
    "classes": (1000, 10_000, 100_000, 1_000_000),
    "evaluations": ((60_000, 60_000), (10_000, 1_000_000)),
    "steps": 200,
    "commands": ("quickstart",),
}
TINY = {
    "batch": 8,
    "classes": (100, 1000),
    "evaluations": ((200, 200), (50, 400)),
    "steps": 4,
    "commands": (),
}
PEERS = ("NormalizedSoftmaxLoss", "ArcFaceLoss", "ProxyAnchorLoss")


def milliseconds(step: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """Returns the time of one call, from the second of two rounds of ``repeats``."""
    for _ in range(2):
        synchronize(device)
        started = time.perf_counter()
        for _ in range(repeats):
            step()
        synchronize(device)
        seconds = time.perf_counter() - started
    return 1000 * seconds / repeats


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def loss_parity(device: torch.device, sizes: dict[str, Any]) -> Iterator[tuple[str, float, float]]:
    """Yields (check, largest difference of loss and gradients from float64, tolerance)."""
    variants = {"K = all": {}, "K = 10": {"top_k": 10}, "negatives": {"top_k": 10, "hard_set": "negatives"}}
    variants |= {"both sides": {"top_k": 10, "both_sides": 1.0}, "sparse": {"top_k": 2, "sparse_grad": True}}
    variants |= {"searched": {"top_k": TOP_K, "sparse_grad": True}}
    for name, options in variants.items():
        torch.manual_seed(0)
        classes = sizes["classes"][2 if name == "searched" and len(sizes["classes"]) > 2 else 0]
        first = HardGlobalSoftminLoss(classes, 64, alpha=0.4, decorrelation=0.0, **options)
        x, labels = torch.randn(32, 64), torch.randint(first.num_classes, (32,))
        results = []
        for where, dtype in ((torch.device("cpu"), torch.float64), (device, torch.float32)):
            loss = copy.deepcopy(first).to(where, dtype)
            embeddings = x.to(where, dtype).requires_grad_()
            value = loss(embeddings, labels.to(where))
            value.backward()
            tensors = value.detach(), embeddings.grad, loss.centers.grad.to_dense()
            results.append([tensor.cpu().double() for tensor in tensors])
        yield f"loss, {name}", max(float((a - b).abs().max()) for a, b in zip(*results, strict=True)), 1e-5


def evaluation_parity(device: torch.device, sizes: dict[str, Any]) -> Iterator[tuple[str, float, float]]:
    """Yields the largest difference of a score from that of the CPU."""
    vectors, labels = clustered(400, seed=1)
    vectors[200:] = vectors[:200]  # duplicates
    ours, expected = (evaluate_embeddings(vectors, labels, (1, 8), device=d).to_dict() for d in (device, "cpu"))
    numbers = [name for name, value in expected.items() if isinstance(value, float)]
    yield "evaluation with duplicates", max(abs(ours[name] - expected[name]) for name in numbers), 0.0


def step_parity(device: torch.device, sizes: dict[str, Any]) -> Iterator[tuple[str, float, float]]:
    """Yields the largest relative difference of a loss in queued and captured steps from those that are read."""
    losses = {name: torch.stack([run()[0] for _ in range(8)]).cpu() for name, run in cifar_steps(device, 16).items()}
    for name, values in losses.items():
        if name != "read":
            difference = ((values - losses["read"]) / losses["read"]).abs().max()
            yield f"training step, {name}", float(difference), 5e-3


def cifar_steps(
    device: torch.device, batch_size: int, dtype: torch.dtype = torch.float32
) -> dict[str, Callable[[], Tensor]]:
    """Steps of a ticket search with ResNet-20 on drawn images: read one by one, queued, and as a CUDA graph."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (batch_size, 3, 32, 32), generator=generator, dtype=torch.uint8).to(device)
    labels, ids = torch.randint(10, (batch_size,), generator=generator).to(device), torch.arange(batch_size)
    runtime = Runtime(device, dtype, 0)
    steps: dict[str, Callable[[], Tensor]] = {}
    names = ("read", "queued", "CUDA graph") if device.type == "cuda" else ("read", "queued")
    for name in names:
        settings = OptimConfig(name="sgd", lr=0.1, nesterov=True, clip=None, schedule="constant", fused=name != "read")
        torch.manual_seed(0)
        model = Classifier(resnet20(10), MEAN, STD).to(device).to(memory_format=torch.channels_last)
        _, masks = sparsify(model, 0.0, inplace=True, exclude=["*.shortcut", "*.fc"])
        objective = MaskedObjective(Objective(nn.CrossEntropyLoss()), masks, MaskConfig(lmbda=1e-8), calls=1)
        groups = [{"name": "all", "params": list(model.parameters()), "lr": 0.1}]
        optimizer = create_optimizer(groups, settings)
        schedule = create_schedule(optimizer, settings, 100, 100)
        scaler = GradScaler(device.type, enabled=False)
        state = TrainState(model, objective, model, objective, optimizer, schedule, scaler)
        options = LoopOptions(100, 100, 1, None, "none", 10**9, log_every=1 if name == "read" else 100)
        model.train()
        function = GraphedStep(train_step, state, options, runtime) if name == "CUDA graph" else train_step
        steps[name] = partial(function, state, (images, labels, ids), options, runtime)
    return steps


def check(device: torch.device, sizes: dict[str, Any]) -> bool:
    """Prints the table of parity and returns whether every check passed."""
    print("| check | largest difference | allowed | |\n|---|---:|---:|---|")
    passed = True
    for part in (loss_parity, evaluation_parity, step_parity):
        for name, difference, allowed in part(device, sizes):
            ok = difference <= allowed  # NaN is not
            passed &= ok
            print(f"| {name} | {difference:.1e} | {allowed:.0e} | {'passed' if ok else 'FAILED'} |", flush=True)
    return passed


def loss_table(device: torch.device, sizes: dict[str, Any]) -> None:
    """Forward and backward of the loss, its peers, and the bare products."""
    batch = sizes["batch"]
    for classes in sizes["classes"]:
        torch.manual_seed(0)
        x, labels = torch.randn(batch, WIDTH, device=device), torch.randint(classes, (batch,), device=device)
        centers = torch.randn(classes, WIDTH, device=device)
        times = {"float32 product": milliseconds(lambda: x @ centers.T, device, 10)}  # noqa: B023 (called at once)
        halves = x.bfloat16(), centers.bfloat16()
        times["bfloat16 product"] = milliseconds(lambda: halves[0] @ halves[1].T, device, 10)  # noqa: B023
        for name, build in loss_variants(classes).items():
            loss = build().to(device)
            with deferred_checks():
                times[name] = milliseconds(partial(forward_and_backward, loss, x, labels), device, 10)
            del loss
        fastest = min((value for name, value in times.items() if name in PEERS), default=None)
        print(f"\n| loss, B {batch}, D {WIDTH}, C {classes:,} | ms | of the float32 product | of the fastest peer |")
        print("|---|---:|---:|---:|")
        for name, value in times.items():
            of_peer = f"{value / fastest:.2f}" if fastest else ""
            print(f"| {name} | {value:.2f} | {value / times['float32 product']:.2f} | {of_peer} |", flush=True)


def loss_variants(classes: int) -> dict[str, Callable[[], nn.Module]]:
    """Losses by name; with 1,000,000 classes the sparse one and the cheapest peer."""
    ours = partial(HardGlobalSoftminLoss, classes, WIDTH)
    variants: dict[str, Callable[[], nn.Module]] = {
        "hgsl, K = 10, sparse": partial(ours, top_k=TOP_K, sparse_grad=True)
    }
    if classes <= 10_000:
        variants |= {"hgsl, K = all": ours, "hgsl, K = 10": partial(ours, top_k=TOP_K)}
    try:
        from pytorch_metric_learning import losses
    except ImportError:
        return variants
    peers = PEERS if classes <= 100_000 else PEERS[:1]
    return variants | {name: partial(getattr(losses, name), classes, WIDTH) for name in peers}


def forward_and_backward(loss: nn.Module, x: Tensor, labels: Tensor) -> None:
    loss.zero_grad(set_to_none=True)
    loss(x.detach().requires_grad_(), labels).backward()


def evaluation_table(device: torch.device, sizes: dict[str, Any]) -> None:
    """Exact evaluation against one product and top k of the same depth."""
    print("\n| exact evaluation, D 512 | seconds | product and top k | ratio |\n|---|---:|---:|---:|")
    for queries, gallery in sizes["evaluations"]:
        vectors, labels = clustered(gallery, seed=0)
        options = {} if queries == gallery else {"gallery_embeddings": vectors, "gallery_labels": labels}
        if options:
            options |= {"ids": np.arange(queries), "gallery_ids": np.arange(gallery)}
        run = partial(evaluate_embeddings, vectors[:queries], labels[:queries], (1, 8), device=device, **options)
        ours = milliseconds(run, device, 1) / 1000
        bare = milliseconds(partial(search_bare, vectors[:queries], vectors, device), device, 1) / 1000
        print(f"| {queries:,} queries, {gallery:,} images | {ours:.2f} | {bare:.2f} | {ours / bare:.2f} |", flush=True)


def search_bare(queries: np.ndarray, gallery: np.ndarray, device: torch.device) -> None:
    """Products and top k in blocks, with the transfers."""
    everything = torch.from_numpy(gallery).to(device)
    for block in torch.from_numpy(queries).split(1024):
        (block.to(device) @ everything.T).topk(min(CLASS_SIZE + 1, len(gallery)), dim=1).indices.cpu()


def clustered(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns unit vectors (count, 512) of classes of ``CLASS_SIZE``, and labels."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % max(2, count // CLASS_SIZE)
    vectors = generator.standard_normal((labels.max() + 1, WIDTH), dtype=np.float32)[labels]
    vectors += 2.2 * generator.standard_normal((count, WIDTH), dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True), labels


def step_table(device: torch.device, sizes: dict[str, Any]) -> None:
    """A step of the ticket search with ResNet-20."""
    batch = 128 if sizes["steps"] > 4 else 8
    print(f"\n| ticket search, ResNet-20, batch {batch} | ms a step | of read |\n|---|---:|---:|")
    times: dict[str, float] = {}
    for dtype in (torch.float32, torch.bfloat16):
        for step, run in cifar_steps(device, batch, dtype).items():
            name = f"{step}, {dtype_name(dtype)}"
            times[name] = milliseconds(run, device, sizes["steps"])
            print(f"| {name} | {times[name]:.2f} | {times[name] / times['read, float32']:.2f} |", flush=True)


def training_table(device: torch.device, sizes: dict[str, Any]) -> None:
    """ResNet-50 against the plain loop, by ``benchmarks/train.py``."""
    words = ["--device", str(device), "--turns", "1"]
    if sizes is FULL:
        words += ["--backbones", "resnet50", "--batch-size", "96", "--steps", "60", "--workers", "14"]
    else:
        words += ["--backbones", "test_resnet", "--batch-size", "4", "--image-size", "32", "--steps", "2"]
    done = subprocess.run([sys.executable, HERE / "train.py", *words], capture_output=True, text=True)
    print(f"\n{done.stdout.strip() if done.returncode == 0 else f'training: {done.stderr.strip()}'}", flush=True)


def command_table(device: torch.device, sizes: dict[str, Any]) -> None:
    """Whole commands, from their start to their report."""
    print("\n| command | seconds | reading each step |\n|---|---:|---:|")
    for config in sizes["commands"]:
        seconds = []
        for each_step in ((), ("--optim.fused", "false", "--run.log_every", "1")):
            with tempfile.TemporaryDirectory() as folder:
                words = [
                    "train",
                    "--config",
                    config,
                    "--run.dir",
                    f"{folder}/run",
                    "--run.device",
                    str(device),
                    *each_step,
                ]
                started = time.perf_counter()
                subprocess.run([sys.executable, "-m", "hgsl", *words], check=True, stdout=subprocess.DEVNULL)
                seconds.append(time.perf_counter() - started)
        print(f"| hgsl train --config {config} | {seconds[0]:.1f} | {seconds[1]:.1f} |", flush=True)


def main() -> int:
    """Prints checks and tables, and returns the exit status: 1 if a check failed, 2 without a GPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small sizes, for a try without a GPU")
    parser.add_argument("--minutes", type=float, default=8, help="time after which no further table is begun")
    options = parser.parse_args()
    device, started = torch.device(options.device), time.monotonic()
    if device.type == "cuda" and not torch.cuda.is_available():
        print("error: no CUDA device here: --device cpu --tiny tries this command without one", file=sys.stderr)
        return 2
    sizes = TINY if options.tiny else FULL
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}, CUDA {torch.version.cuda}\n")
    with float32_products():
        passed = check(device, sizes)
        for table in (loss_table, evaluation_table, step_table, training_table, command_table):
            if time.monotonic() - started > 60 * options.minutes * 0.75:  # a table takes at most a quarter
                print(f"\nnot run, the time is over: {table.__name__}")
            else:
                table(device, sizes)
    print(f"\n{'All checks passed' if passed else 'A CHECK FAILED'}, {time.monotonic() - started:.0f} s.")
    return 0 if passed else 1


if __name__ == "__main__":
    raise SystemExit(main())
