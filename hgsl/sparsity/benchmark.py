"""Cost of networks: measured latency, parameters, operations and file size."""

import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from hgsl.common.latency import fastest_seconds
from hgsl.common.modules import evaluation_mode
from hgsl.sparsity.storage import save


def benchmark(
    models: Mapping[str, nn.Module],
    example: Tensor,
    repeats: int = 10,
    quality: Mapping[str, Mapping[str, float]] | None = None,
) -> dict[str, dict[str, Any]]:
    """Measures plain networks in evaluation mode, alternately, so that other load affects all of them alike.

    Args:
        models: Name to network, as ``finalize`` and ``compact`` return it, or the dense one; on the device to measure.
        example: A batch of inputs, ``(B, ...)``, on the same device.
        repeats: Timed calls of each network, after two warm-up calls.
        quality: Name to the scores of the network, such as ``{"accuracy": 0.91}``, which are added to its row.

    Returns:
        For each name ``latency_ms`` (per batch, the fastest call, since other load only adds time),
        ``images_per_second``, ``parameters``, ``nonzero``, ``flops`` (per image; a multiply-add is two, and zeros
        count, since dense kernels compute them too), ``file_bytes`` (of ``save``), and the scores.
    """
    calls = {name: partial(model, example) for name, model in models.items()}
    with evaluation_mode(*models.values()):
        with torch.inference_mode():
            seconds = fastest_seconds(calls, repeats, warmup=2, device=example.device)
        counts = {name: _counts(model, example) for name, model in models.items()}
    return {
        name: {
            "latency_ms": 1000 * seconds[name],
            "images_per_second": len(example) / seconds[name],
            **counts[name],
            **(quality or {}).get(name, {}),
        }
        for name in models
    }


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Returns measurements as a Markdown table, with the speed relative to the first row.

    Args:
        rows: The result of ``benchmark``.
    """
    first = next(iter(rows.values()))
    costs = ("latency_ms", "images_per_second", "parameters", "nonzero", "flops", "file_bytes")
    quality = list(dict.fromkeys(name for row in rows.values() for name in row if name not in costs))
    header = ["model", "ms/batch", "images/s", "speed", "parameters", "nonzero", "MFLOPs/image", "file kB", *quality]
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
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
            *(f"{row[name]:.4f}" if name in row else "-" for name in quality),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _counts(model: nn.Module, example: Tensor) -> dict[str, int]:
    # Not in inference mode, where the counter would count decomposed operators.
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(example[:1])
    with tempfile.TemporaryDirectory() as folder:
        save(model, Path(folder) / "model.safetensors")
        file_bytes = (Path(folder) / "model.safetensors").stat().st_size
    parameters = list(model.parameters())
    return {
        "parameters": sum(parameter.numel() for parameter in parameters),
        "nonzero": sum(int(parameter.count_nonzero()) for parameter in parameters),
        "flops": counter.get_total_flops(),
        "file_bytes": file_bytes,
    }
