"""Exclusion keys: pairs of integer columns, one of the queries and one of the gallery, whose equal rows never match."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hgsl.evaluation.knn.vectors import Ints

KeyPair = tuple[Ints, Ints]  # one key per query, one per gallery row

DENSE = 4  # integers that span at most this many values each are counted in a table, without sorting them


def count_equal(gallery_keys: Ints, query_keys: Ints) -> Ints:
    """Returns for each query key how many gallery keys equal it, (Q,)."""
    if not len(gallery_keys):
        return np.zeros(len(query_keys), dtype=np.int64)
    if _is_dense(gallery_keys):
        low = gallery_keys.min()
        index = query_keys.clip(low, gallery_keys.max()) - low
        return np.where(index + low == query_keys, np.bincount(gallery_keys - low)[index], 0)
    values, counts = np.unique(gallery_keys, return_counts=True)
    index = np.searchsorted(values, query_keys).clip(max=len(values) - 1)
    return np.where(values[index] == query_keys, counts[index], 0).astype(np.int64)


def count_all_equal(pairs: Sequence[KeyPair]) -> Ints:
    """Returns for each query how many gallery rows have its key in every one of the pairs, (Q,)."""
    rows = np.flatnonzero(np.isin(pairs[-1][1], pairs[-1][0]))  # no query equals the others
    keys = pairs[0][0], pairs[0][1][rows]
    for query_keys, gallery_keys in pairs[1:]:
        keys = both_equal(keys, (query_keys, gallery_keys[rows]))
    return count_equal(keys[1], keys[0])


def both_equal(first: KeyPair, second: KeyPair) -> KeyPair:
    """Returns keys that are equal where the keys of both pairs are."""
    firsts, seconds = _codes(np.concatenate(first)), _codes(np.concatenate(second))
    keys = firsts * (seconds.max() + 1) + seconds
    return keys[: len(first[0])], keys[len(first[0]) :]


def allowed(positions: Ints, rows: Ints, excluded: Sequence[KeyPair]) -> NDArray[np.bool_]:
    """Returns (B, K): whether gallery row ``positions[i, j]`` may be a neighbor of query ``rows[i]``; -1 may not."""
    mask = positions >= 0
    for query_keys, gallery_keys in excluded:
        mask &= gallery_keys[positions] != query_keys[rows, None]
    return mask


def _codes(keys: Ints) -> Ints:
    """Numbers from 0 that are equal where the keys are, at most ``DENSE`` times as large as there are keys."""
    if _is_dense(keys):
        return keys - keys.min()
    return np.unique(keys, return_inverse=True)[1].astype(np.int64)


def _is_dense(keys: Ints) -> bool:
    return int(keys.max()) - int(keys.min()) < DENSE * len(keys)
