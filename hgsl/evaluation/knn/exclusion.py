"""Exclusion keys: pairs of integer columns, one of the queries and one of the gallery, whose equal rows never match."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hgsl.evaluation.knn.vectors import Ints

KeyPair = tuple[Ints, Ints]  # one key per query, one per gallery row


def count_equal(gallery_keys: Ints, query_keys: Ints) -> Ints:
    """Returns for each query key how many gallery keys equal it, (Q,)."""
    values, counts = np.unique(gallery_keys, return_counts=True)
    index = np.searchsorted(values, query_keys).clip(max=len(values) - 1)
    return np.where(values[index] == query_keys, counts[index], 0).astype(np.int64)


def both_equal(first: KeyPair, second: KeyPair) -> KeyPair:
    """Returns keys that are equal where the keys of both pairs are."""
    values, codes = np.unique(np.concatenate(second), return_inverse=True)
    _, firsts = np.unique(np.concatenate(first), return_inverse=True)
    keys = firsts.astype(np.int64) * len(values) + codes
    return keys[: len(first[0])], keys[len(first[0]) :]


def allowed(positions: Ints, rows: Ints, excluded: Sequence[KeyPair]) -> NDArray[np.bool_]:
    """Returns (B, K): whether gallery row ``positions[i, j]`` may be a neighbor of query ``rows[i]``; -1 may not."""
    mask = positions >= 0
    for query_keys, gallery_keys in excluded:
        mask &= gallery_keys[positions] != query_keys[rows, None]
    return mask
