"""Intervals of scores: percentile bootstrap over queries or classes, and the paired difference of runs."""

import math
from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray
from scipy import special

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
        labels: (Q,) labels. If given, classes are resampled instead of queries: images of a class are correlated, so
            the interval is wider; it covers other classes of the same domain.
        samples: Number of draws of Q queries, or of all classes, with replacement.
        level: Share of the means within the interval.

    Raises:
        InputError: No scores, another number of labels, fewer than 2 samples, or a level outside 0 to 1.

    Source: Efron, Tibshirani, "An Introduction to the Bootstrap", 1993.
    """
    if not per_query:
        raise InputError("per_query has no scores: give those of a result, result.per_query")
    values = np.stack(list(per_query.values()), axis=1)  # (Q, metrics)
    low, high = _percentiles(_means(values, labels, samples, seed), level)
    return {key: (float(low[i]), float(high[i])) for i, key in enumerate(per_query)}


def paired_difference(
    first: Values,
    second: Values,
    labels: Ints | None = None,
    *,
    samples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float, float]:
    """Returns mean(second - first) over the same queries with the low and high end of its interval.

    Both sides are resampled at the same classes, so that the difficulty of a class cancels. A class is drawn with all
    its queries, since resampling within it would count their noise twice. With several runs per side, the variance
    between runs that their classes do not explain is added. The interval is mean -+ t * standard error, with the
    degrees of freedom of Welch and Satterthwaite, since a percentile interval is too short for few classes or runs.

    Args:
        first: (Q,) values of one run, or (runs, Q) of several that differ in their seed.
        second: The same of the other side.
        labels: (Q,) labels; without them every query counts as a class of its own, and the interval is too short
            wherever queries of a class resemble each other.
        samples: How often all classes are drawn with replacement.
        level: Share of such intervals that hold the true difference.

    Raises:
        InputError: The two have different numbers of queries, or an argument is out of range.

    Source: Cameron, Gelbach, Miller, "Bootstrap-Based Improvements for Inference with Clustered Errors", 2008.
    """
    first, second = np.atleast_2d(first), np.atleast_2d(second)
    if first.shape[1] != second.shape[1]:
        raise InputError(f"a paired bootstrap needs the same queries, found {first.shape[1]} and {second.shape[1]}")
    _check_level(level)
    difference = second.mean(axis=0) - first.mean(axis=0)
    classes = len(difference) if labels is None else len(np.unique(labels))
    mean = float(difference.mean())
    if classes < 2:
        return mean, -math.inf, math.inf  # a single class has no variance between classes
    spread = _means(difference[:, None], labels, samples, seed).std(ddof=1)
    variances, freedom = [spread**2 * classes / (classes - 1)], [classes - 1]
    for runs in (first, second):
        if len(runs) > 1:
            variances.append(_run_variance(runs, labels) / len(runs))
            freedom.append(len(runs) - 1)
    total = sum(variances)
    if total == 0:
        return mean, mean, mean
    degrees = total**2 / sum(variance**2 / df for variance, df in zip(variances, freedom, strict=True))
    half = float(special.stdtrit(degrees, (1 + level) / 2) * math.sqrt(total))
    return mean, mean - half, mean + half


def _run_variance(runs: Values, labels: Ints | None) -> float:
    """The variance of the means of runs (S, Q), less the part due to their differences in single classes."""
    _, codes = np.unique(np.arange(runs.shape[1]) if labels is None else labels, return_inverse=True)
    sizes = np.bincount(codes)
    means = np.stack([np.bincount(codes, values) for values in runs]) / sizes  # (S, classes)
    shares = sizes / sizes.sum()
    totals = means @ shares  # (S,)
    residuals = means - means.mean(axis=0) - (totals - totals.mean())[:, None]
    noise = (shares**2 * residuals**2).sum() / (len(runs) - 1) * len(sizes) / (len(sizes) - 1)
    return float(max(0.0, totals.var(ddof=1) - noise))


def _means(values: Values, labels: Ints | None, samples: int, seed: int) -> Values:
    """The (samples, metrics) means of resampled queries or classes."""
    if samples < 2:
        raise InputError(f"a bootstrap needs at least 2 samples, found {samples}")
    sums, sizes = values, np.ones(len(values))
    if labels is not None:
        if np.shape(labels) != (len(values),):
            raise InputError(
                f"labels have the shape {np.shape(labels)}: expected one for each of {len(values)} queries"
            )
        _, codes, counts = np.unique(labels, return_inverse=True, return_counts=True)
        sums = np.zeros((len(counts), values.shape[1]))
        np.add.at(sums, codes, values)
        sizes = counts.astype(np.float64)
    drawn = [weights @ np.column_stack([sums, sizes]) for weights in _weights(len(sums), samples, seed)]
    totals = np.concatenate(drawn)
    return totals[:, :-1] / totals[:, -1:]


def _weights(count: int, samples: int, seed: int) -> Iterator[Values]:
    """Yields blocks (b, count) of b samples: how often each of ``count`` units was drawn."""
    generator = np.random.default_rng(seed)
    size = max(1, CHUNK // count)
    for start in range(0, samples, size):
        rows = min(size, samples - start)
        drawn = generator.integers(count, size=(rows, count)) + count * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count).astype(np.float64)


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise InputError(f"level must be between 0 and 1, found {level}")


def _percentiles(means: Values, level: float) -> tuple[Values, Values]:
    _check_level(level)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high
