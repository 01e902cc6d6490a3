"""Speed of exported files beside PyTorch, as ``hgsl-export`` prints it."""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from hgsl.common.device import cpu_has_bfloat16
from hgsl.common.tables import format_cells
from hgsl.export import OnnxEmbedder, OpenVinoEmbedder, export_model, latencies, parity
from hgsl.models import Embedder


def compare_speed(model: Embedder, path: Path, format: str) -> None:
    """Prints the latencies of an ONNX or OpenVINO file beside those of PyTorch."""
    runtimes: dict[str, Any] = _openvino(model, path) if format == "openvino" else {"ONNX Runtime": OnnxEmbedder(path)}
    print_latencies(latencies({"PyTorch": model, **runtimes}, model.data_config["image_size"]))


def _openvino(model: Embedder, path: Path) -> dict[str, Any]:
    """The OpenVINO file in each precision of this processor, and an ONNX file for comparison, which is not kept."""
    with TemporaryDirectory() as folder:
        export_model(model, f"{folder}/model.onnx", batch_sizes=(1,))
        networks = {"ONNX Runtime": OnnxEmbedder(f"{folder}/model.onnx"), "OpenVINO": OpenVinoEmbedder(path)}
    if cpu_has_bfloat16():
        bfloat16 = networks["OpenVINO, bfloat16"] = OpenVinoEmbedder(path, precision="bfloat16")
        difference = max(parity(model, bfloat16, model.data_config["image_size"], (1, 16)).values())
        print(f"largest difference from PyTorch in bfloat16, OpenVINO's default on this processor: {difference:.1e}")
    return networks


def print_latencies(times: Mapping[str, Mapping[int, float]]) -> None:
    """Prints the table of milliseconds per batch."""
    cells = {name: [f"{time:.1f}" for time in row.values()] for name, row in times.items()}
    print(f"\nmilliseconds per batch, fastest of several, threads: {torch.get_num_threads()}")
    print(format_cells(cells, [f"batch {size}" for size in next(iter(times.values()))]))


def megabytes(*paths: Path) -> str:
    """Returns the size of files together in text."""
    return f"{sum(path.stat().st_size for path in paths) / 1e6:.1f} MB"
