"""Counts of equal keys against counting them one by one."""

import numpy as np
import pytest

from hgsl.evaluation.knn.exclusion import both_equal, count_all_equal, count_equal

EXTREMES = np.array([-(2**63), 2**63 - 1, -1, 0, 3])


@pytest.mark.parametrize("values", [np.arange(-3, 9), EXTREMES], ids=["dense", "sparse"])
def test_equal_keys_are_counted(values):
    rng = np.random.default_rng(0)
    queries, gallery = rng.choice(np.concatenate([values, EXTREMES]), 50), rng.choice(values, 30)
    expected = (queries[:, None] == gallery).sum(axis=1)
    assert expected.any()
    np.testing.assert_array_equal(count_equal(gallery, queries), expected)
    np.testing.assert_array_equal(count_equal(gallery[:0], queries), 0)


@pytest.mark.parametrize("first", [np.arange(4), EXTREMES], ids=["dense", "sparse"])
@pytest.mark.parametrize("second", [np.arange(-2, 1), EXTREMES], ids=["dense", "sparse"])
def test_rows_equal_in_every_key_are_counted(first, second):
    rng = np.random.default_rng(0)
    pairs = [(rng.choice(values, 50), rng.choice(values, 40)) for values in (first, second, np.arange(3))]
    equal = [queries[:, None] == gallery for queries, gallery in pairs]
    queries, gallery = both_equal(*pairs[:2])
    np.testing.assert_array_equal(queries[:, None] == gallery, equal[0] & equal[1])
    for count in (2, 3):
        expected = np.logical_and.reduce(equal[:count]).sum(axis=1)
        assert expected.any()
        np.testing.assert_array_equal(count_all_equal(pairs[:count]), expected)
    absent = (np.full(50, 7), np.full(40, 8))
    np.testing.assert_array_equal(count_all_equal([pairs[0], absent]), 0)
