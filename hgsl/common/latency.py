"""Latency of alternatives, measured in turns."""

import time
from collections.abc import Callable, Mapping

import torch


def fastest_seconds(
    calls: Mapping[str, Callable[[], object]],
    repeats: int,
    *,
    warmup: int = 1,
    device: torch.device | None = None,
) -> dict[str, float]:
    """Returns name -> seconds of the fastest of ``repeats`` calls.

    Other work on the machine only ever adds time, so the fastest call is the nearest to the truth. The alternatives
    take turns, so that such work falls on all of them alike.

    Args:
        calls: Name -> what is timed.
        repeats: Calls of each that count.
        warmup: Calls of each before them that do not.
        device: Where they compute; the kernels of a CUDA device are waited for.
    """

    def seconds(call: Callable[[], object]) -> float:
        _synchronize(device)
        start = time.perf_counter()
        call()
        _synchronize(device)
        return time.perf_counter() - start

    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(warmup + repeats):
        for name, call in calls.items():
            times[name].append(seconds(call))
    return {name: min(values[warmup:]) for name, values in times.items()}


def _synchronize(device: torch.device | None) -> None:
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
