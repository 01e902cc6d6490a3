"""Images per second, time spent waiting for them, and peak memory: the training loop against a plain PyTorch loop.

    python benchmarks/train.py                  # ResNet-50 and EfficientNet-Lite0 at 224 pixels
    python benchmarks/train.py --compile        # also with run.compile, which adds minutes
    python benchmarks/train.py --root IMAGES    # one folder per class, instead of synthetic images
    python benchmarks/train.py --backbones vit_small_patch14_reg4_dinov2 --lora 8   # also with adapters of rank 8

Both loops train the same model with the same loss, batch and images, decoded again in each epoch. The plain loop has
float32, the default memory format, torchvision's transforms of Pillow images, and a loader with persistent workers. An
epoch has at least ``EPOCH_STEPS`` steps, so that its end is seldom. Each turn is a separate process, so that peak
memory is that of one loop; turns alternate, and the fastest of each loop counts. On a GPU images are cached resized,
and further rows queue the steps (``optim.fused``, ``run.log_every``), and replace the loader by one constant batch: the
upper bound of the step rate. With ``--lora``, a row trains low-rank adapters in place of all weights of the backbone
(extra lora), and is compared with the row "hgsl", which it otherwise equals.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import transforms

from hgsl.common.device import dtype_name, pick_device, pick_precision
from hgsl.config import Config, DataConfig, LoraConfig, LossConfig, ModelConfig, OptimConfig, RunConfig, TrainConfig
from hgsl.data import RetrievalDataset
from hgsl.engine.loop.meter import Meter
from hgsl.engine.loop.state import build_state
from hgsl.engine.loop.step import train_step
from hgsl.engine.loop.train_state import Batch, LoopOptions, reads_after
from hgsl.engine.loop.transfer import RunAhead, copied_ahead
from hgsl.engine.parts.build import build_manifest
from hgsl.engine.parts.freeze import train_mode
from hgsl.engine.parts.objective import build_objective
from hgsl.engine.parts.optim import create_optimizer, parameter_groups
from hgsl.engine.retrieval import Retrieval
from hgsl.engine.runtime import build_runtime
from hgsl.engine.stages import training_stages
from hgsl.losses import deferred_checks
from hgsl.models import create_embedder
from hgsl.models.activations import activations_in_place

BATCHES = {"resnet50": 16, "tf_efficientnet_lite0": 32}
CLASSES, IMAGE_SIZE = 8, (500, 375)
EPOCH_STEPS = 16
WARM_UP = 2  # steps
QUEUED = ("hgsl, queued", "hgsl, constant batch")  # loops whose steps nobody reads


def settings(args: argparse.Namespace) -> Config:
    """Settings of both loops."""
    data = DataConfig(name="folder", root=args.root, image_size=args.image_size, workers=args.workers)
    if pick_device(args.device).type == "cuda":
        data.cache = "resized"
    return Config(
        run=RunConfig(
            device=args.device, compile=args.loop == "hgsl, compiled", log_every=50 if args.loop in QUEUED else 1
        ),
        data=data,
        model=ModelConfig(
            backbone=args.backbone, weights="none", lora=LoraConfig(rank=args.lora if args.loop == "hgsl, LoRA" else 0)
        ),
        loss=LossConfig(alpha=0.4, top_k=None),
        optim=OptimConfig(fused=args.loop in QUEUED),
        train=TrainConfig(epochs=10_000, batch_size=batch_size(args, args.backbone)),
    )


def hgsl_loop(config: Config, constant: bool) -> Iterator[Meter]:
    """Takes steps of the engine and yields the meter after each."""
    runtime = build_runtime(config)
    problem = Retrieval(config, runtime).problem(measure_before=False)
    [stage] = training_stages(config)
    state = build_state(config, problem, stage, runtime)
    log_every = reads_after(config.run.log_every, runtime.device)
    options = LoopOptions(
        problem.steps_per_epoch, stage.epochs, 1, config.optim.clip, "none", 10**9, log_every=log_every
    )
    stream: Iterator[Batch] = copied_ahead(
        problem.batches(stage.seed, 0, stage.epochs),
        options,
        runtime,
        problem.model.prefers_channels_last(runtime.device),
    )
    if constant:
        same = next(stream)
        stream = iter(lambda: same, None)
    train_mode(problem.model, "none")
    meter, run_ahead = Meter(), RunAhead(options, runtime)
    for step in count(1):
        with meter.waiting():
            batch = next(stream)
        with deferred_checks():
            numbers = train_step(state, batch, options, runtime)
        run_ahead.limit()
        meter.add(0.0 if config.run.log_every > 1 else float(numbers[0]), len(batch[1]))
        yield meter
        if step == WARM_UP:
            meter = Meter()


def plain(config: Config) -> Iterator[Meter]:
    """Takes steps of a plain PyTorch loop and yields the meter after each."""
    device = pick_device(config.run.device)
    model = create_embedder(config.model.backbone, config.model.pooling, weights="none").to(device)
    in_place = activations_in_place(model.eval())
    model.train()
    for activation in in_place:  # as timm builds them
        activation.inplace = True
    normalize = transforms.Normalize(model.data_config["mean"], model.data_config["std"])
    crop = transforms.RandomResizedCrop(
        config.data.image_size, config.data.crop_scale, interpolation=transforms.InterpolationMode.BICUBIC
    )
    transform = transforms.Compose([crop, transforms.RandomHorizontalFlip(), transforms.ToTensor(), normalize])
    images = RetrievalDataset(build_manifest(config.data).subset("train"), transform)
    loss_fn = build_objective(config.loss, images.num_classes, model.embedding_size).to(device)
    optimizer = create_optimizer(parameter_groups(model, loss_fn, config.optim), config.optim)
    workers = config.data.workers or 0
    loader = DataLoader(
        images,
        config.train.batch_size,
        shuffle=True,
        num_workers=workers,
        drop_last=True,
        pin_memory=device.type == "cuda",
        persistent_workers=workers > 0,
    )
    meter, stream = Meter(), iter(loader)
    for step in count(1):
        with meter.waiting():
            batch = next(stream, None)
            if batch is None:
                stream = iter(loader)
                batch = next(stream)
        loss = loss_fn(model(batch[0].to(device, non_blocking=True)), batch[1].to(device, non_blocking=True))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        meter.add(float(loss.detach()), len(batch[1]))
        yield meter
        if step == WARM_UP:
            meter = Meter()


def turn(args: argparse.Namespace) -> dict[str, float]:
    """Runs one loop in this process: ``steps`` steps after the warm-up."""
    config = settings(args)
    steps = plain(config) if args.loop == "plain" else hgsl_loop(config, constant=args.loop == "hgsl, constant batch")
    started = time.perf_counter()
    meter = next(steps)
    first = time.perf_counter() - started
    for _ in range(WARM_UP - 1 + args.steps):
        meter = next(steps)
    cuda = pick_device(args.device).type == "cuda"
    if cuda:
        torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() / 2**10 if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"speed": meter.speed(), "wait": meter.wait_share(), "peak": peak / 2**10, "first": first}


def measured(args: argparse.Namespace, backbone: str, loop: str, root: str) -> dict[str, float]:
    """Runs :func:`turn` in a separate process."""
    words = [*sys.argv[1:], "--backbone", backbone, "--loop", loop, "--root", root]
    result = subprocess.run([sys.executable, __file__, *words], capture_output=True, text=True)
    if result.returncode:
        raise SystemExit(f"{backbone}, {loop} failed:\n{result.stderr}")
    numbers = json.loads(result.stdout.splitlines()[-1])
    print(f"{backbone}, {loop}: {numbers['speed']:.2f} images/s", file=sys.stderr)
    return numbers


def batch_size(args: argparse.Namespace, backbone: str) -> int:
    """Images per step."""
    return args.batch_size or BATCHES.get(backbone, 32)


def draw_images(root: Path, count: int) -> None:
    """Writes ``count`` JPEG files of coarse noise, smoothly enlarged, with fine noise on it."""
    generator = np.random.default_rng(0)
    for label in range(CLASSES):
        (root / f"class_{label}").mkdir()
        for number in range(-(-count // CLASSES)):
            coarse = Image.fromarray(generator.integers(0, 256, (12, 16, 3)).astype(np.uint8))
            pixels = np.asarray(coarse.resize(IMAGE_SIZE, Image.Resampling.BICUBIC)).astype(np.int16)
            fine = (pixels + generator.integers(-12, 13, pixels.shape)).clip(0, 255)
            Image.fromarray(fine.astype(np.uint8)).save(root / f"class_{label}" / f"{number}.jpg", quality=90)


def compare(args: argparse.Namespace, root: str) -> None:
    device = pick_device(args.device)
    native = dtype_name(pick_precision("auto", device))
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{name}; torch {torch.__version__}; {args.image_size} px; {args.workers} workers")
    if device.type == "cpu" and native == "float32":
        print("This CPU has no bfloat16 units, so both loops compute in float32.")
    loops = ["hgsl", "plain", *(["hgsl, LoRA"] if args.lora else [])]
    loops += list(QUEUED) if device.type == "cuda" else []
    for backbone in args.backbones:
        turns: dict[str, list[dict[str, float]]] = {loop: [] for loop in loops}
        for _ in range(args.turns):
            for loop in loops:
                turns[loop].append(measured(args, backbone, loop, root))
        if args.compile:
            turns["hgsl, compiled"] = [measured(args, backbone, "hgsl, compiled", root)]
        best = {loop: max(numbers, key=lambda turn: turn["speed"]) for loop, numbers in turns.items()}
        batch = batch_size(args, backbone)
        config = settings(argparse.Namespace(**{**vars(args), "backbone": backbone, "loop": "hgsl", "root": root}))
        print(f"\nhgsl in {build_runtime(config).precision}:")
        print(f"\n| {backbone}, batch {batch} | images/s | of plain | waiting | peak MiB | first step, s |")
        print("|---|---:|---:|---:|---:|---:|")
        for loop, numbers in best.items():
            ratio = numbers["speed"] / best["plain"]["speed"]
            print(
                f"| {loop} | {numbers['speed']:.2f} | {ratio:.2f} | {100 * numbers['wait']:.0f} % "
                f"| {numbers['peak']:,.0f} | {numbers['first']:.0f} |"
            )
        if device.type == "cuda":
            share = best["hgsl, queued"]["speed"] / best["hgsl, constant batch"]["speed"]
            print(f"\nqueued at {100 * share:.0f} % of the step rate with a constant batch")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbones", nargs="+", default=list(BATCHES))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, help="default: 16 for ResNet-50, else 32")
    parser.add_argument("--steps", type=int, default=4, help="timed steps per turn")
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--lora", type=int, default=0, metavar="RANK", help="also train adapters of this rank")
    parser.add_argument("--root", help="images, one folder per class")
    parser.add_argument("--backbone", help=argparse.SUPPRESS)
    parser.add_argument("--loop", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.loop:
        print(json.dumps(turn(args)))
        return
    with tempfile.TemporaryDirectory() as drawn:
        if args.root is None:
            # Half of the classes are for training.
            largest = max(batch_size(args, backbone) for backbone in args.backbones)
            draw_images(Path(drawn), 2 * EPOCH_STEPS * largest)
        compare(args, args.root or drawn)


if __name__ == "__main__":
    main()
