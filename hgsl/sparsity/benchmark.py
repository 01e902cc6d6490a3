"""What a network costs here and now: measured time beside parameters, operations and file size."""

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from hgsl.sparsity.storage import save


def benchmark(model: nn.Module, example: Tensor, repeats: int = 10, **quality: float) -> dict[str, Any]:
    """Measures a plain network in evaluation mode.

    Args:
        model: What ``finalize`` or ``compact`` returned, or the dense network; on the device to measure.
        example: A batch of inputs, ``(B, ...)``, on the same device.
        repeats: Timed passes, after two that are not.
        **quality: What it is worth, such as ``accuracy=0.91`` or ``map_at_r=0.65``: put beside the costs.

    Returns:
        ``latency_ms`` (median over the passes, of a batch), ``images_per_second``, ``parameters``, ``nonzero``,
        ``flops`` (of one image, a multiply-add is two; zeros are counted, for dense kernels compute them too),
        ``file_bytes`` (by ``save``) and ``quality`` under its own names.
    """
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        times = [_seconds(model, example) for _ in range(repeats + 2)][2:]
    # Counted outside inference mode, in which operators arrive at the counter already decomposed.
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(example[:1])
    model.train(was_training)
    with tempfile.TemporaryDirectory() as folder:
        save(model, Path(folder) / "model.safetensors")
        file_bytes = (Path(folder) / "model.safetensors").stat().st_size
    parameters = list(model.parameters())
    seconds = statistics.median(times)
    return {
        "latency_ms": 1000 * seconds,
        "images_per_second": len(example) / seconds,
        "parameters": sum(parameter.numel() for parameter in parameters),
        "nonzero": sum(int(parameter.count_nonzero()) for parameter in parameters),
        "flops": counter.get_total_flops(),
        "file_bytes": file_bytes,
        **quality,
    }


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Returns measurements as a table in Markdown, with the speed relative to the first row.

    Args:
        rows: A name for each result of ``benchmark``.
    """
    first = next(iter(rows.values()))
    usual = ("latency_ms", "images_per_second", "parameters", "nonzero", "flops", "file_bytes")
    quality = [name for name in first if name not in usual]
    head = ["model", "ms/batch", "images/s", "speed", "parameters", "nonzero", "MFLOPs/image", "file kB", *quality]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for name, row in rows.items():
        cells = [
            name,
            f"{row['latency_ms']:.1f}",
            f"{row['images_per_second']:.1f}",
            f"{row['images_per_second'] / first['images_per_second']:.2f}x",
            f"{row['parameters']:,}",
            f"{row['nonzero']:,}",
            f"{row['flops'] / 1e6:.1f}",
            f"{row['file_bytes'] / 1e3:,.0f}",
            *(f"{row[name]:.4f}" for name in quality),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _seconds(model: nn.Module, example: Tensor) -> float:
    if example.is_cuda:
        torch.cuda.synchronize(example.device)
    start = time.perf_counter()
    model(example)
    if example.is_cuda:
        torch.cuda.synchronize(example.device)
    return time.perf_counter() - start
