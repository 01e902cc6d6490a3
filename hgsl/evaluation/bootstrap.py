"""How sure a score is: percentile bootstrap over queries or over classes, and the paired bootstrap of two runs."""

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from hgsl.common.errors import InputError
from hgsl.evaluation.knn.vectors import Ints

Values = NDArray[np.float64]
CHUNK = 1 << 22  # random numbers drawn at a time


def intervals(
    per_query: Mapping[str, Values],
    labels: Ints | None = None,
    *,
    samples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """Returns key -> (low, high), the percentile interval of the mean over queries.

    Args:
        per_query: Key -> (Q,) values.
        labels: (Q,) labels. If given, whole classes are drawn instead of queries: images of a class resemble each
            other, so the interval is wider, and it speaks about other classes of the same kind.
        samples: How often Q queries (or all classes) are drawn with replacement.
        level: Share of the means within the interval.

    Raises:
        InputError: Fewer than 2 samples, or a level that is no share.

    Source: Efron, Tibshirani, "An Introduction to the Bootstrap", 1993.
    """
    values = np.stack(list(per_query.values()), axis=1)  # (Q, metrics)
    low, high = _percentiles(_means(values, labels, samples, seed), level)
    return {key: (float(low[i]), float(high[i])) for i, key in enumerate(per_query)}


def paired_difference(
    first: Values, second: Values, *, samples: int = 1000, level: float = 0.95, seed: int = 0
) -> tuple[float, float, float]:
    """Returns mean(second - first) over the same queries with the low and high end of its bootstrap interval.

    Both runs are drawn at the same queries, so what makes a query hard for both cancels.

    Raises:
        InputError: The two have different numbers of queries.
    """
    if first.shape != second.shape:
        raise InputError(f"a paired bootstrap needs the same queries, found {len(first)} and {len(second)}")
    difference = (second - first)[:, None]
    low, high = _percentiles(_means(difference, None, samples, seed), level)
    return float(difference.mean()), float(low[0]), float(high[0])


def _means(values: Values, labels: Ints | None, samples: int, seed: int) -> Values:
    """The (samples, metrics) means of resampled queries or classes."""
    if samples < 2:
        raise InputError(f"a bootstrap needs at least 2 samples, found {samples}")
    sums, sizes = values, np.ones(len(values))
    if labels is not None:
        _, place, counts = np.unique(labels, return_inverse=True, return_counts=True)
        sums = np.zeros((len(counts), values.shape[1]))
        np.add.at(sums, place, values)
        sizes = counts.astype(np.float64)
    drawn = [weights @ np.column_stack([sums, sizes]) for weights in _weights(len(sums), samples, seed)]
    totals = np.concatenate(drawn)
    return totals[:, :-1] / totals[:, -1:]


def _weights(count: int, samples: int, seed: int) -> Iterator[Values]:
    """How often each of ``count`` units was drawn, (some samples, count) at a time."""
    generator = np.random.default_rng(seed)
    size = max(1, CHUNK // count)
    for start in range(0, samples, size):
        rows = min(size, samples - start)
        drawn = generator.integers(count, size=(rows, count)) + count * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count).astype(np.float64)


def _percentiles(means: Values, level: float) -> tuple[Values, Values]:
    if not 0 < level < 1:
        raise InputError(f"level must be between 0 and 1, found {level}")
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high
