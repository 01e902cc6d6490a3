"""Bootstrap intervals: their width against theory, and the gain of pairing."""

import numpy as np
import pytest

from hgsl.common.errors import InputError
from hgsl.evaluation.bootstrap import intervals, paired_difference


def test_the_interval_of_a_share_is_as_wide_as_the_binomial_says():
    hits = (np.random.default_rng(0).random(2000) < 0.3).astype(float)
    low, high = intervals({"recall@1": hits}, samples=4000)["recall@1"]
    error = np.sqrt(hits.mean() * (1 - hits.mean()) / len(hits))
    assert low == pytest.approx(hits.mean() - 1.96 * error, abs=0.1 * error)
    assert high == pytest.approx(hits.mean() + 1.96 * error, abs=0.1 * error)


def test_drawing_classes_widens_it_where_images_of_a_class_agree():
    labels = np.repeat(np.arange(40), 50)
    hits = (np.random.default_rng(1).random(40) < 0.5).astype(float)[labels]  # a class is right or wrong as a whole
    queries, classes = intervals({"r": hits})["r"], intervals({"r": hits}, labels)["r"]
    assert classes[1] - classes[0] == pytest.approx(np.sqrt(50) * (queries[1] - queries[0]), rel=0.15)


def test_the_same_seed_gives_the_same_interval_however_many_numbers_fit():
    values = {"a": np.random.default_rng(2).random(500), "b": np.ones(500)}
    assert intervals(values, seed=3) == intervals(values, seed=3) != intervals(values, seed=4)
    assert intervals(values)["b"] == (1, 1)


def test_pairing_finds_a_small_difference_that_the_intervals_hide():
    rng = np.random.default_rng(5)
    first = rng.random(1000)
    second = first + 0.01 + 0.02 * rng.standard_normal(1000)
    mean, low, high = paired_difference(first, second)
    assert mean == pytest.approx((second - first).mean())
    assert 0 < low < mean < high
    separate = [intervals({"x": values})["x"] for values in (first, second)]
    assert separate[0][1] > separate[1][0]


@pytest.mark.parametrize(
    ("classes", "size", "class_spread", "runs", "run_spread"),
    [
        (100, 30, 0.05, 1, 0.0),  # classes differ by 5 points between two runs that are equal on the whole
        (8, 80, 0.05, 1, 0.0),
        (60, 30, 0.0, 1, 0.0),
        (60, 20, 0.05, 3, 0.01),
        (12, 40, 0.02, 3, 0.02),
    ],
)
def test_false_positives_are_as_rare_as_stated(classes, size, class_spread, runs, run_spread):
    rng = np.random.default_rng(0)
    labels, trials = np.repeat(np.arange(classes), size), 500

    def side():
        effect = class_spread / np.sqrt(2) * rng.standard_normal(classes)
        noise = 0.3 * rng.standard_normal((runs, classes * size))
        return effect[labels] + run_spread * rng.standard_normal((runs, 1)) + noise

    stars = 0
    for _ in range(trials):
        _, low, high = paired_difference(side(), side(), labels, samples=200)
        stars += low > 0 or high < 0
    assert 0.03 <= stars / trials <= 0.08


def test_one_class_or_equal_runs_have_no_significant_difference():
    values = np.random.default_rng(0).random(40)
    assert paired_difference(values, values, np.zeros(40, int))[1:] == (-np.inf, np.inf)
    assert paired_difference(values, values, np.arange(40) % 4) == (0, 0, 0)
    assert paired_difference(np.stack([values, values]), values, np.arange(40) % 4) == (0, 0, 0)


def test_bad_arguments_are_refused():
    with pytest.raises(InputError, match="at least 2 samples"):
        intervals({"a": np.ones(3)}, samples=1)
    with pytest.raises(InputError, match="level must be between 0 and 1"):
        intervals({"a": np.ones(3)}, level=95)
    with pytest.raises(InputError, match="same queries, found 3 and 4"):
        paired_difference(np.ones(3), np.ones(4))
    with pytest.raises(InputError, match=r"labels have the shape \(2,\): expected one for each of 3 queries"):
        intervals({"a": np.ones(3)}, np.zeros(2))
    with pytest.raises(InputError, match="per_query has no scores"):
        intervals({})
