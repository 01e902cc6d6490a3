"""Refinements of a ranking, each against a dense computation from its definition."""

import numpy as np
import pytest
import torch
from torch import nn

from hgsl.common.errors import InputError
from hgsl.evaluation import make_task, rank
from hgsl.evaluation.refine.expansion import augment_gallery, expand_queries
from hgsl.evaluation.refine.tta import AveragedViews
from hgsl.evaluation.refine.whitening import fit_whitening
from tests.helpers import clusters


class Mean(nn.Module):
    """Embeds an image by the means of its quarters, so that position matters."""

    def forward(self, images):
        return nn.functional.normalize(nn.functional.adaptive_avg_pool2d(images, 2).flatten(1), dim=1)


def test_flip_averages_both_directions():
    images = torch.rand(3, 3, 8, 8)
    found = AveragedViews(Mean(), flip=True)(images)
    expected = nn.functional.normalize(Mean()(images) + Mean()(images.flip(-1)), dim=1)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(AveragedViews(Mean())(images.flip(-1)), found)


def test_five_crops_are_the_corners_and_the_center():
    images = torch.zeros(1, 1, 8, 8)
    images[..., 0, 0] = 1
    views = AveragedViews(nn.Identity(), flip=False, crops=5, share=0.5)._cropped(images)
    assert [bool(view.sum() > 0) for view in views] == [True, False, False, False, False]
    assert {view.shape for view in views} == {(1, 1, 8, 8)}
    assert AveragedViews(Mean(), crops=5).description == "5 crops + flip"
    with pytest.raises(InputError, match="crops must be 1"):
        AveragedViews(Mean(), crops=3)


def test_whitened_training_embeddings_have_unit_covariance_before_scaling():
    vectors, _ = clusters(count=400)
    whitening = fit_whitening(vectors)
    projected = (vectors - whitening.mean) @ whitening.projection
    np.testing.assert_allclose(projected.T @ projected / len(vectors), np.eye(8), atol=1e-6)
    whitened = whitening.apply(vectors)
    np.testing.assert_allclose(np.linalg.norm(whitened, axis=1), 1, atol=1e-6)
    assert fit_whitening(vectors, 3).apply(vectors).shape == (400, 3)
    with pytest.raises(InputError, match="variance in 8 directions, cannot keep 9"):
        fit_whitening(vectors, 9)
    with pytest.raises(InputError, match="400 identical embeddings have no directions"):
        fit_whitening(np.tile(vectors[:1], (400, 1)))
    for floor in (-0.1, 1.0, np.nan):
        with pytest.raises(InputError, match=f"floor is a share of the largest variance, .* found {floor}"):
            fit_whitening(vectors, floor=floor)
    with pytest.raises(InputError, match="fitted on 8 dimensions"):
        whitening.apply(np.eye(3, dtype=np.float32))


def expanded(vectors, gallery, count, alpha, own):
    similarity = np.float64(vectors) @ np.float64(gallery).T
    similarity[np.arange(len(vectors)), own] = -2
    result = np.float64(vectors).copy()
    for row, line in enumerate(similarity):
        for column in np.argsort(-line)[:count]:
            result[row] += max(line[column], 0) ** alpha * gallery[column]
    return result / np.linalg.norm(result, axis=1, keepdims=True)


def test_query_expansion_and_gallery_augmentation():
    vectors, labels = clusters()
    task = make_task(vectors, labels)
    own = np.arange(len(labels))
    expected = expanded(vectors, vectors, 5, 3.0, own)
    np.testing.assert_allclose(expand_queries(task, 5, 3.0).queries.data, expected, atol=1e-6)
    augmented = augment_gallery(task, 5, 3.0)
    np.testing.assert_allclose(augmented.gallery.data, expected, atol=1e-6)
    np.testing.assert_array_equal(augmented.queries.data, vectors)
    assert rank(expand_queries(augmented, 5)).result.map_at_r > rank(task).result.map_at_r
    for alpha in (-1.0, np.nan, np.inf):
        with pytest.raises(InputError, match=f"a finite alpha of at least 0, found 3 and {alpha}"):
            expand_queries(task, 3, alpha)
    with pytest.raises(InputError, match="the metric is 'l2'"):
        expand_queries(make_task(vectors, labels, metric="l2"))
