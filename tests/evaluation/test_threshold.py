"""The no-match threshold: its computation, and its false-accept rate on classes that it was not calibrated on."""

import numpy as np
import pytest

from hgsl.common.errors import InputError
from hgsl.evaluation import make_task, rank
from hgsl.evaluation.knn.vectors import open_vectors
from hgsl.evaluation.neighbors import TopScores
from hgsl.evaluation.threshold import (
    FEW_CLASSES,
    accepted_interval,
    calibrate,
    measure,
    stranger_scores,
    stranger_task,
)
from tests.helpers import clusters


def some_scores(count=200, classes=20, seed=0):
    rng = np.random.default_rng(seed)
    return np.float32(rng.random(count)), np.arange(count) % classes


@pytest.mark.parametrize("rate", [0, 0.05, 0.29, 0.5])
def test_the_threshold_is_the_lowest_that_keeps_the_rate(rate):
    scores, labels = some_scores(100)
    calibration = calibrate(scores, labels, rate, num_gallery=50)
    accepted = (scores >= np.float32(calibration.threshold)).sum()
    assert accepted == round(100 * rate)  # 0.29 of 100 is 29, not the 28 of rounded floats
    assert calibration.false_accept_rate == pytest.approx(rate)
    assert (calibration.num_queries, calibration.num_classes, calibration.num_gallery) == (100, 20, 50)


def test_equal_strangers_are_all_refused_or_all_accepted():
    scores, labels = np.float32([0.5, 0.5, 0.5, 0.1]), np.array([0, 1, 2, 3])
    assert calibrate(scores, labels, 0.5, 9).false_accept_rate == 0
    assert calibrate(scores, labels, 0.75, 9).false_accept_rate == 0.75


@pytest.mark.parametrize("count", [3, 7, 29, 300])
def test_the_advised_rate_is_accepted(count):
    scores, labels = some_scores(count, classes=3)
    with pytest.raises(InputError, match=f"cannot be measured on {count} validation images: ask for") as error:
        calibrate(scores, labels, 0.9 / count, 9)
    advice = float(str(error.value).rsplit("ask for ", 1)[1].split()[0])
    assert 1 / count <= advice < 1.2 / count
    assert calibrate(scores, labels, advice, 9).false_accept_rate == pytest.approx(1 / count)


def test_a_rate_that_cannot_be_estimated_is_refused():
    scores, labels = some_scores()
    with pytest.raises(InputError, match="200 validation images of 1 class"):
        calibrate(scores, np.zeros(200, int), 0.05, 9)
    with pytest.raises(InputError, match="no image of another class"):
        calibrate(np.full(200, -np.inf, np.float32), labels, 0.05, 9)
    with pytest.raises(InputError, match="from 0 to below 1, found 1"):
        calibrate(scores, labels, 1.0, 9)
    with pytest.raises(InputError, match="no query has a match"):
        measure(TopScores(*np.empty((3, 0))), 0.5)
    assert calibrate(scores, np.arange(200) % 3, 0.05, 9).warning is not None
    assert calibrate(scores, labels, 0.05, 9).warning is None


def test_an_interval_of_accepted_strangers_resamples_a_class_in_every_role_that_it_has():
    labels = np.arange(200) % 20
    low, high = accepted_interval(np.zeros(200), labels)
    assert (low, high) == (0, pytest.approx(1 - 0.05 ** (1 / 20)))
    accepted = (labels < 4) * 1.0
    low, high = accepted_interval(accepted, labels)
    assert low < 0.1 < 0.2 < 0.3 < high
    # The same class is the nearest of all accepted strangers: without it none is accepted.
    nearest = np.where(accepted, 0, labels + 1)
    assert accepted_interval(accepted, labels, nearest)[0] == 0
    few = calibrate(*some_scores(classes=FEW_CLASSES - 1), 0.05, 9)
    enough = calibrate(*some_scores(classes=FEW_CLASSES), 0.05, 9)
    assert few.warning
    assert enough.warning is None


def test_the_queries_that_a_threshold_accepts_are_counted():
    top = rank(make_task(*clusters())).top_scores
    threshold = float(np.median(top.best))
    here = measure(top, threshold)
    accepted = top.best >= np.float32(threshold)
    assert here.precision == pytest.approx(top.is_hit[accepted].mean())
    assert here.recall == pytest.approx((top.is_hit & accepted).mean())
    assert here.false_accept_rate == pytest.approx((top.best_other >= np.float32(threshold)).mean())
    assert measure(top, 2.0).precision is None


def test_strangers_are_scored_against_the_gallery_without_their_own_class():
    vectors, labels = clusters(count=60)
    others, other_labels = clusters(seed=1, count=30, classes=15)
    scores = stranger_scores(stranger_task(make_task(vectors, labels), open_vectors(others), other_labels))
    similarity = np.float64(others) @ np.float64(vectors).T
    similarity[other_labels[:, None] == labels] = -2
    np.testing.assert_allclose(scores, similarity.max(axis=1), atol=1e-6)


def test_the_rate_holds_for_classes_that_were_not_calibrated_on():
    """A small validation set as its own gallery accepted half of all strangers of a large gallery; this must not."""
    rng = np.random.default_rng(0)

    def images(classes, first):
        labels = np.repeat(np.arange(first, first + classes), 10)
        vectors = rng.standard_normal((classes, 16)).repeat(10, axis=0) + 0.7 * rng.standard_normal((10 * classes, 16))
        return np.float32(vectors / np.linalg.norm(vectors, axis=1, keepdims=True)), labels

    rates, covered = [], 0
    for _ in range(10):
        gallery, validation, strangers = images(60, 0), images(20, 1000), images(60, 2000)
        task = make_task(*gallery)
        calibration = calibrate(
            stranger_scores(stranger_task(task, open_vectors(validation[0]), validation[1])), validation[1], 0.1, 600
        )
        scores = stranger_scores(stranger_task(task, open_vectors(strangers[0]), strangers[1]))
        rates.append((scores >= np.float32(calibration.threshold)).mean())
        low, high = calibration.interval
        covered += low <= rates[-1] <= high
    assert 0.07 < np.mean(rates) < 0.14
    assert covered >= 7
