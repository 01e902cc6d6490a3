"""Numerical differences between an exported model and the original, and their latencies."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from hgsl.common.latency import fastest_seconds

TOLERANCE = 1e-4  # largest absolute difference in any dimension of a unit vector

Network = Callable[[Tensor], Tensor]


def parity(model: Network, other: Network, image_size: int, batch_sizes: Sequence[int]) -> dict[int, float]:
    """Returns batch size -> the largest absolute difference of two networks' outputs, on seeded noise."""
    generator = torch.Generator().manual_seed(0)
    differences = {}
    for size in batch_sizes:
        images = torch.randn(size, 3, image_size, image_size, generator=generator)
        with torch.inference_mode():
            differences[size] = float((model(images) - other(images)).abs().max())
    return differences


def latencies(
    networks: Mapping[str, Network], image_size: int, batch_sizes: Sequence[int] = (1, 16), repeats: int = 11
) -> dict[str, dict[int, float]]:
    """Returns name -> batch size -> milliseconds per batch, as :func:`hgsl.common.latency.fastest_seconds` measures."""
    milliseconds: dict[str, dict[int, float]] = {name: {} for name in networks}
    for size in batch_sizes:
        images = torch.randn(size, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            seconds = fastest_seconds({name: partial(network, images) for name, network in networks.items()}, repeats)
        for name, value in seconds.items():
            milliseconds[name][size] = 1000 * value
    return milliseconds
