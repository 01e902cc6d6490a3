"""How near an exported model is to its original, and how fast."""

import time
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

TOLERANCE = 1e-4  # of each number of a unit vector

Network = Callable[[Tensor], Tensor]


def parity(model: Network, other: Network, image_size: int, batch_sizes: Sequence[int]) -> dict[int, float]:
    """Returns batch size -> the largest absolute difference of two networks' outputs, on seeded noise."""
    generator = torch.Generator().manual_seed(0)
    found = {}
    for size in batch_sizes:
        images = torch.randn(size, 3, image_size, image_size, generator=generator)
        with torch.inference_mode():
            found[size] = float((model(images) - other(images)).abs().max())
    return found


def latencies(
    networks: Mapping[str, Network], image_size: int, batch_sizes: Sequence[int] = (1, 16), repeats: int = 11
) -> dict[str, dict[int, float]]:
    """Returns name -> batch size -> milliseconds a batch, the fastest of ``repeats`` turns that the networks take.

    Other work on the machine only ever adds time, so the fastest turn is the nearest to the truth. The first turn warms
    up and does not count.
    """
    found: dict[str, dict[int, float]] = {name: {} for name in networks}
    for size in batch_sizes:
        images = torch.randn(size, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
        times: dict[str, list[float]] = {name: [] for name in networks}
        with torch.inference_mode():
            for turn in range(repeats + 1):
                for name, network in networks.items():
                    start = time.perf_counter()
                    network(images)
                    if turn:
                        times[name].append(1000 * (time.perf_counter() - start))
        for name, values in times.items():
            found[name][size] = min(values)
    return found
