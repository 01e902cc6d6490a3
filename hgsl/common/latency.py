"""Latency of several functions, measured alternately."""

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

    Other load on the machine only adds time, so the minimum is the best estimate. The functions are called alternately,
    so that other load affects all of them alike.

    Args:
        calls: Name -> function to time.
        repeats: Timed calls of each function.
        warmup: Untimed calls of each function before them.
        device: Device that they compute on; CUDA devices are synchronized before and after each call.
    """

    def seconds(call: Callable[[], object]) -> float:
        synchronize(device)
        start = time.perf_counter()
        call()
        synchronize(device)
        return time.perf_counter() - start

    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(warmup + repeats):
        for name, call in calls.items():
            times[name].append(seconds(call))
    return {name: min(values[warmup:]) for name, values in times.items()}


def synchronize(device: torch.device | None) -> None:
    """Waits for the work of a CUDA device; does nothing on others."""
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
