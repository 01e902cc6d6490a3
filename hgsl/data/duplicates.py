"""Duplicate images: files of equal bytes, and images of nearly equal perceptual hashes."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.fft import dctn

MAX_DISTANCE = 4  # Hamming distance of the 64-bit perceptual hashes of near duplicates, at most
FLAT = 4.0  # gray levels of 255; a thumbnail with a smaller standard deviation has no features to compare

Pairs = list[tuple[int, int]]


def is_flat(gray: NDArray[np.float64]) -> bool:
    """Whether a gray thumbnail is of nearly one color."""
    return bool(gray.std() < FLAT)


def perceptual_hash(gray: NDArray[np.float64]) -> int | None:
    """64-bit perceptual hash of a gray thumbnail (32, 32): which of its 8 x 8 lowest frequencies exceed the median.

    None for a flat thumbnail, whose coefficients are noise.
    """
    if is_flat(gray):
        return None
    low = dctn(gray, norm="ortho")[:8, :8].ravel()
    bits = low > np.median(low[1:])  # the median without low[0], the mean brightness
    return int.from_bytes(np.packbits(bits).tobytes())


def exact_duplicates(digests: Sequence[bytes]) -> Pairs:
    """Pairs of rows with equal digests: the first such row, and each later one. Empty digests are ignored."""
    rows: dict[bytes, list[int]] = defaultdict(list)
    for row, digest in enumerate(digests):
        if digest:
            rows[digest].append(row)
    return [(group[0], other) for group in rows.values() for other in group[1:]]


def near_duplicates(hashes: Sequence[int | None], exact: Pairs) -> Pairs:
    """Pairs of rows whose perceptual hashes differ in at most ``MAX_DISTANCE`` bits.

    Args:
        hashes: (N,) perceptual hashes; None matches nothing.
        exact: Exact duplicates; the later row of such a pair is ignored, since the first one stands for it.
    """
    copies = {b for _, b in exact}
    rows = np.array([i for i, value in enumerate(hashes) if value is not None and i not in copies], np.int64)
    values = np.array([hashes[i] for i in rows], np.uint64)
    pairs = []
    for start in range(0, len(rows), 1024):
        block = values[start : start + 1024, None] ^ values[None, start:]  # (<= 1024, N - start)
        near = np.argwhere(np.bitwise_count(block) <= MAX_DISTANCE)
        pairs += [(int(rows[start + a]), int(rows[start + b])) for a, b in near if a < b]
    return pairs
