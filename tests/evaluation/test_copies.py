"""Near duplicates by embedding: pairs, and their calibrated similarity."""

import numpy as np
import pytest

from hgsl.common.errors import InputError
from hgsl.evaluation import copies
from hgsl.evaluation.copies import Neighborhood, calibrate_copies, nearest_images, similar_pairs


def unit(vectors: np.ndarray) -> np.ndarray:
    return np.float32(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def planted(count: int = 200) -> tuple[np.ndarray, set[tuple[int, int]]]:
    """Random directions, of which each of the last 20 is near one of the first 20."""
    generator = np.random.default_rng(0)
    vectors = generator.standard_normal((count, 32))
    vectors[-20:] = vectors[:20] + 0.05 * generator.standard_normal((20, 32))
    return unit(vectors), {(row, count - 20 + row) for row in range(20)}


@pytest.mark.parametrize("exact", [50_000, 100])
def test_similar_pairs_are_those_of_all_pairs(monkeypatch: pytest.MonkeyPatch, exact: int) -> None:
    monkeypatch.setattr(copies, "EXACT", exact)
    vectors, expected = planted()
    neighbors = nearest_images(vectors)
    pairs, scores = similar_pairs(neighbors, 0.9)
    assert {(one, other) for one, other in pairs.tolist()} == expected
    np.testing.assert_allclose(scores, np.einsum("pd,pd->p", vectors[pairs[:, 0]], vectors[pairs[:, 1]]), atol=1e-6)


def test_the_similarity_accepts_most_copies() -> None:
    neighbors = Neighborhood(np.array([[1], [0], [3], [2]]), np.float32([[0.5], [0.5], [0.6], [0.6]]))
    threshold = calibrate_copies(np.linspace(0.8, 0.999, 200, dtype=np.float32), neighbors, np.array([0, 1, 2, 2]))
    assert threshold.value == pytest.approx(0.809, abs=2e-3)
    assert threshold.recall == pytest.approx(0.955, abs=0.005)
    assert threshold.confused == 0


def test_a_similarity_that_other_classes_reach_is_raised() -> None:
    rows, labels = np.arange(400)[:, None] ^ 1, np.arange(400)
    scores = np.linspace(0.5, 0.95, 400, dtype=np.float32)[:, None]
    threshold = calibrate_copies(np.full(100, 0.7, np.float32), Neighborhood(rows, scores), labels)
    assert threshold.value == pytest.approx(0.943, abs=1e-3)
    assert threshold.recall == 0
    assert threshold.confused == 6 / 400
    same = calibrate_copies(np.full(100, 0.7, np.float32), Neighborhood(rows, scores), np.zeros(400, int))
    assert same.value == pytest.approx(0.7)  # neighbors of one class do not count


def test_equal_images_of_several_classes_are_found() -> None:
    rows, labels = np.arange(400)[:, None] ^ 1, np.arange(400)
    neighbors = Neighborhood(rows, np.full((400, 1), np.nextafter(np.float32(1), np.float32(2))))
    threshold = calibrate_copies(np.full(100, 0.7, np.float32), neighbors, labels)
    assert 0.999 < threshold.value < 1
    assert len(similar_pairs(neighbors, threshold.value)[0]) == 200


def test_a_given_similarity_is_measured() -> None:
    neighbors = Neighborhood(np.array([[1], [0]]), np.float32([[0.6], [0.6]]))
    threshold = calibrate_copies(np.float32([0.5, 0.7, 0.9, 0.95]), neighbors, np.array([0, 1]), 0.6)
    assert threshold == (0.6, 0.75, 1.0)
    with pytest.raises(InputError, match="between -1 and 1"):
        calibrate_copies(np.float32([0.5]), neighbors, np.array([0, 1]), 1.2)
    with pytest.raises(InputError, match="no image"):
        calibrate_copies(np.float32([]), neighbors, np.array([0, 1]))
