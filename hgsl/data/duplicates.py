"""Duplicate images: files of equal bytes, and images of nearly equal perceptual hashes."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy.fft import dctn
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

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
    """Pairs of rows whose perceptual hashes differ in at most ``MAX_DISTANCE`` bits, in ascending order.

    Args:
        hashes: (N,) perceptual hashes; None matches nothing.
        exact: Exact duplicates; the later row of such a pair is ignored, since the first one stands for it.
    """
    copies = {b for _, b in exact}
    rows = np.array([i for i, value in enumerate(hashes) if value is not None and i not in copies], np.int64)
    values = np.array([hashes[i] for i in rows], np.uint64)
    return [(a, b) for a, b in rows[_hamming_pairs(values)].tolist()]


def group_pairs(pairs: Iterable[tuple[int, int]]) -> list[list[int]]:
    """Groups of rows that pairs connect, directly or through other rows; rows and groups in ascending order.

    >>> group_pairs([(5, 2), (2, 7), (1, 3)])
    [[1, 3], [2, 5, 7]]
    """
    ends = np.array(list(pairs), np.int64).reshape(-1, 2)
    rows, numbers = np.unique(ends, return_inverse=True)
    numbers = numbers.reshape(-1, 2)
    links = coo_array((np.ones(len(ends)), (numbers[:, 0], numbers[:, 1])), shape=(len(rows), len(rows)))
    groups: dict[int, list[int]] = {}
    for row, component in zip(rows.tolist(), connected_components(links, directed=False)[1].tolist(), strict=True):
        groups.setdefault(component, []).append(row)
    return list(groups.values())


def _hamming_pairs(values: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Every pair (P, 2) of values that differ in at most ``MAX_DISTANCE`` bits, without comparing all pairs.

    The bits are cut into ``MAX_DISTANCE`` + 2 parts. So many differing bits leave at least two parts equal, and so a
    pair has equal keys for some two parts: only values with equal keys are compared.

    Source: Norouzi, Punjani, Fleet, "Fast Search in Hamming Space with Multi-Index Hashing", CVPR 2012.
    """
    count = np.uint64(len(values))
    bits = np.array_split(np.arange(64, dtype=np.uint64), MAX_DISTANCE + 2)
    masks = [np.bitwise_or.reduce(np.uint64(1) << part) for part in bits]
    pairs = [np.empty(0, np.uint64)]  # first * count + second, which sorts as the pair does
    for one, other in combinations(masks, 2):
        pairs += [first * count + second for first, second in _near_pairs(values, values & (one | other))]
    first, second = np.divmod(np.unique(np.concatenate(pairs)), max(count, np.uint64(1)))
    return np.stack([first, second], axis=1).astype(np.int64)


def _near_pairs(
    values: NDArray[np.uint64], keys: NDArray[np.uint64]
) -> Iterator[tuple[NDArray[np.uint64], NDArray[np.uint64]]]:
    """Yields the ascending pairs of values of equal keys that differ in at most ``MAX_DISTANCE`` bits."""
    order = np.argsort(keys, kind="stable")
    keys, values = keys[order], values[order]
    left, distance = np.arange(len(keys)), 1
    while len(left):  # of each value, the values at this distance in the order of the keys
        left = left[left < len(keys) - distance]
        left = left[keys[left] == keys[left + distance]]
        near = left[np.bitwise_count(values[left] ^ values[left + distance]) <= MAX_DISTANCE]
        yield order[near].astype(np.uint64), order[near + distance].astype(np.uint64)
        distance += 1
