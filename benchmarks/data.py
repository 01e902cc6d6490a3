"""Benchmark of the data pipeline against plain torchvision: images per second, warm and cold.

    python benchmarks/data.py --root FLOWERS17        # Oxford 17 flowers, 224 pixels, both recipes, 2 workers

The plain pipeline is ``ImageFolder`` with Resize or RandomResizedCrop, RandomCrop, flip, ToTensor and Normalize. Every
pipeline gives the same shuffled batches of float32 tensors of the same size through a ``DataLoader`` with as many
workers. In a cold pass, the operating system's cached copies of the files are dropped first, and the cache of resized
images is empty, so that the pass writes it. Passes alternate, and the table has the fastest of each, with the processor
time of the workers, which other processes disturb less.
"""

import argparse
import os
import platform
import resource
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision.transforms as tv
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import ImageFolder

from hgsl.data import Manifest, RetrievalDataset, load_manifest, train_transform

CONFIG = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "interpolation": "bicubic"}
SCALE = (0.25, 1.0)
TARGET = 2.5


def plain(folder: Path, recipe: str, size: int) -> Dataset[Any]:
    """The pipeline of the torchvision examples."""
    mode = tv.InterpolationMode.BICUBIC
    crop = {
        "resize_random_crop": [tv.Resize(size, mode), tv.RandomCrop(size)],
        "random_resized_crop": [tv.RandomResizedCrop(size, SCALE, interpolation=mode)],
    }[recipe]
    steps = [*crop, tv.RandomHorizontalFlip(), tv.ToTensor(), tv.Normalize(CONFIG["mean"], CONFIG["std"])]
    return ImageFolder(str(folder), tv.Compose(steps))


def class_folders(manifest: Manifest, folder: Path) -> Path:
    """The images in the layout of ``ImageFolder``, as links."""
    for path, label in zip(manifest.paths, manifest.labels, strict=True):
        (folder / f"{label:03}").mkdir(parents=True, exist_ok=True)
        (folder / f"{label:03}" / Path(path).name).symlink_to((manifest.root / path).absolute())
    return folder


def drop_from_memory(files: list[Path]) -> None:
    """Drops the operating system's cached copies of these files."""
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


@dataclass
class Pass:
    """Images per second, and milliseconds of processor time per image in the workers."""

    rate: float = 0.0
    cost: float = float("inf")

    def best(self, other: "Pass") -> "Pass":
        return Pass(max(self.rate, other.rate), min(self.cost, other.cost))


def one_pass(data: Dataset[Any], batch_size: int, workers: int) -> Pass:
    before = processor_time()
    batches = iter(DataLoader(data, batch_size, shuffle=True, drop_last=True, num_workers=workers))
    first = len(next(batches)[0])  # the workers have started
    start = time.perf_counter()
    count = sum(len(batch[0]) for batch in batches)
    rate = count / (time.perf_counter() - start)
    del batches  # joins the workers, whose time counts only then
    return Pass(rate, (processor_time() - before) / (first + count) * 1000)


def processor_time() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def measure(manifest: Manifest, recipe: str, options: argparse.Namespace, scratch: Path) -> dict[str, Pass]:
    cache, sources = scratch / "cache", [manifest.root / path for path in manifest.paths]
    transform = train_transform(CONFIG, options.size, recipe, scale=SCALE)
    reference = plain(scratch / "folders", recipe, options.size)
    uncached, cached = RetrievalDataset(manifest, transform), RetrievalDataset(manifest, transform, cache)

    def without_cache() -> None:
        shutil.rmtree(cache, ignore_errors=True)
        drop_from_memory(sources)

    passes: dict[str, tuple[Dataset[Any], Callable[[], None]]] = {
        "plain torchvision, cold": (reference, lambda: drop_from_memory(sources)),
        "plain torchvision, warm": (reference, lambda: None),
        "hgsl without a cache, cold": (uncached, lambda: drop_from_memory(sources)),
        "hgsl without a cache, warm": (uncached, lambda: None),
        "hgsl cache: resized, first pass": (cached, without_cache),
        "hgsl cache: resized, cold files": (cached, lambda: drop_from_memory(list(cache.rglob("*.npy")))),
        "hgsl cache: resized, warm": (cached, lambda: None),
    }
    best = dict.fromkeys(passes, Pass())
    for _ in range(options.repeats):
        for name, (data, prepare) in passes.items():
            prepare()
            best[name] = best[name].best(one_pass(data, options.batch_size, options.workers))
    size = sum(file.stat().st_size for file in cache.rglob("*.npy"))
    print(f"\n{recipe}, {options.size} px; the cache takes {size / 2**20:.0f} MiB for {len(manifest):,} images\n")
    print("| pipeline | images/s | times plain, warm | CPU ms per image | CPU time of plain, warm |")
    print("|---|---:|---:|---:|---:|")
    base = best["plain torchvision, warm"]
    for name, fastest in best.items():
        ratios = fastest.rate / base.rate, base.cost / fastest.cost
        print(f"| {name} | {fastest.rate:.0f} | {ratios[0]:.2f} | {fastest.cost:.2f} | {ratios[1]:.2f} times |")
    shutil.rmtree(cache)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="Folder of Oxford 17 flowers, with jpg/ in it.")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    manifest = load_manifest("flowers17", options.root)
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {options.workers} workers, ", end="")
    print(f"torch {torch.__version__}, batches of {options.batch_size}, fastest of {options.repeats}")
    with tempfile.TemporaryDirectory() as scratch:
        class_folders(manifest, Path(scratch) / "folders")
        for recipe in ("resize_random_crop", "random_resized_crop"):
            best = measure(manifest, recipe, options, Path(scratch))
            ratio = best["hgsl cache: resized, warm"].rate / best["plain torchvision, warm"].rate
            if recipe == "resize_random_crop":
                print(f"\ntarget: {TARGET} times plain with the cache warm; measured {ratio:.2f}")


if __name__ == "__main__":
    main()
