"""8-bit files of ``hgsl-export``: written, timed and scored beside the float32 file, kept if they are faster."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hgsl.cli._runtimes import megabytes, print_latencies
from hgsl.cli._settings import build_parser, parse_as, settings_of_run
from hgsl.common.tables import format_table
from hgsl.data import RetrievalDataset
from hgsl.engine.evaluation import EvalOptions, evaluate_model
from hgsl.engine.parts.build import build_eval_set, build_manifest
from hgsl.engine.parts.run_images import images_of_run
from hgsl.engine.runtime import build_runtime
from hgsl.export import OnnxEmbedder, latencies, quantize, quantize_static
from hgsl.models import Embedder

CALIBRATION_IMAGES, BATCH = 128, 8
FLOAT, STATIC, DYNAMIC = "ONNX Runtime", "8 bits, static", "8 bits, dynamic"
SUFFIXES = {STATIC: ".int8", DYNAMIC: ".int8-dynamic"}


@dataclass(frozen=True)
class Int8Data:
    """The images that 8-bit files are calibrated and scored on.

    Attributes:
        training: Training images of the run, as in an evaluation.
        searched: Its test images; None if it was trained on all of its images.
        options: Options of the evaluation, in float32 on the CPU.
    """

    training: RetrievalDataset
    searched: RetrievalDataset | None
    options: EvalOptions


def int8_data(run: Path, root: str | None, model: Embedder) -> Int8Data:
    """Lists the images of a run, in the folder ``root`` if they were moved."""
    words = ["--config", str(run / "config.yaml"), *(["--data.root", root] if root else [])]
    settings = settings_of_run(run)
    config, _ = parse_as(settings, build_parser("", settings), words)
    runtime = replace(build_runtime(config), device=torch.device("cpu"), dtype=torch.float32)
    options = EvalOptions.of_training(config.eval, runtime)
    if config.data.test_share == 0:
        return Int8Data(build_eval_set(config.data, build_manifest(config.data), model, "train"), None, options)
    images = images_of_run(config.data, run)
    images.print_notes()
    training, searched = (build_eval_set(config.data, images.manifest, model, split) for split in ("train", "test"))
    return Int8Data(training, searched, options)


def write_int8(path: Path, data: Int8Data) -> dict[str, Path]:
    """Writes both 8-bit files beside the float32 file; returns name -> file."""
    files = {name: path.with_suffix(f"{suffix}{path.suffix}") for name, suffix in SUFFIXES.items()}
    quantize_static(path, files[STATIC], calibration_batches(data.training))
    quantize(path, files[DYNAMIC])
    return files


def calibration_batches(images: RetrievalDataset) -> list[Tensor]:
    """Returns batches of evenly spaced images, and so of all classes where images are listed class by class."""
    rows = np.unique(np.linspace(0, len(images) - 1, min(CALIBRATION_IMAGES, len(images))).round().astype(int))
    return list(torch.stack([images[row][0] for row in rows.tolist()]).split(BATCH))


def compare_int8(model: Embedder, path: Path, data: Int8Data, *, keep_slower: bool) -> None:
    """Writes the 8-bit files, prints latencies and scores of every network, and removes the files that are slower."""
    files = write_int8(path, data)
    networks = {"PyTorch": model, FLOAT: OnnxEmbedder(path)} | {n: OnnxEmbedder(file) for n, file in files.items()}
    times = latencies(networks, model.data_config["image_size"])
    print_latencies(times)
    _print_scores(networks, data)
    print()
    for name, file in files.items():
        ratios = {size: time / times[FLOAT][size] for size, time in times[name].items()}
        shares = ", ".join(f"{100 * ratio:.0f}% (batch {size})" for size, ratio in ratios.items())
        if keep_slower or max(ratios.values()) < 1:
            print(f"written: {file} ({megabytes(file)}) takes {shares} of the time of the float32 file")
        else:
            file.unlink()
            print(f"not kept: {file.name} takes {shares} of the time of the float32 file; --keep-slower keeps it")


def _print_scores(networks: Mapping[str, Callable[[Tensor], Tensor]], data: Int8Data) -> None:
    if data.searched is None:
        print("\nno scores of the 8-bit files: the run was trained on all of its images (data.test_share 0)")
        return
    scores: dict[str, Any] = {
        name: evaluate_model(network, data.searched, data.options).summary()  # type: ignore[arg-type]
        for name, network in networks.items()
    }
    first = next(iter(scores.values()))
    print(f"\n{first['num_queries']:,} queries, {first['num_gallery']:,} images, {first['protocol']}, ", end="")
    print(f"split {first['split_hash']}, in percent")
    print(format_table(scores))
