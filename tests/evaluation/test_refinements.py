"""What may be done around the search, each against a dense computation from its definition."""

import numpy as np
import pytest
import torch
from torch import nn

from hgsl.common.errors import InputError
from hgsl.evaluation import evaluate_task, make_task
from hgsl.evaluation.refine.expansion import augment_gallery, expand_queries
from hgsl.evaluation.refine.rerank import k_reciprocal
from hgsl.evaluation.refine.tta import AveragedViews
from hgsl.evaluation.refine.whitening import fit_whitening
from hgsl.evaluation.threshold import TopScores, calibrate, measure, top_scores


def clusters(seed=0, count=120, width=8, noise=0.8):
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 10
    vectors = rng.standard_normal((10, width))[labels] + noise * rng.standard_normal((count, width))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32), labels


class Mean(nn.Module):
    """Embeds an image by the means of its quarters, so that where a thing is matters."""

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
    assert evaluate_task(expand_queries(augmented, 5)).map_at_r > evaluate_task(task).map_at_r
    with pytest.raises(InputError, match="the metric is 'l2'"):
        expand_queries(make_task(vectors, labels, metric="l2"))


def reranked(vectors, k1, k2, weight):
    """Distances of the paper, dense, by sets."""
    count = len(vectors)
    distance = 1 - np.float64(vectors) @ np.float64(vectors).T
    np.fill_diagonal(distance, -1)  # an image is its own nearest
    ranks = np.argsort(distance, axis=1, kind="stable")
    np.fill_diagonal(distance, 0)

    def reciprocal(p, k):
        return {g for g in ranks[p, : k + 1] if p in ranks[g, : k + 1]}

    encoding = np.zeros((count, count))
    for p in range(count):
        first = reciprocal(p, k1)
        members = set(first)
        for q in first:
            more = reciprocal(q, max(1, round(k1 / 2)))
            if len(more & first) > 2 / 3 * len(more):
                members |= more
        members = sorted(members)
        encoding[p, members] = np.exp(-distance[p, members])
        encoding[p] /= encoding[p].sum()
    encoding = np.stack([encoding[ranks[p, :k2]].mean(axis=0) for p in range(count)])
    jaccard = np.array([[1 - np.minimum(a, b).sum() / np.maximum(a, b).sum() for b in encoding] for a in encoding])
    return (1 - weight) * jaccard + weight * distance


@pytest.mark.parametrize("apart", [False, True])
def test_k_reciprocal_reranking(apart):
    vectors, labels = clusters(count=60)
    final = reranked(vectors, 8, 4, 0.3)
    if apart:  # queries and gallery are different images; the gallery comes first in the joint set
        queries, gallery = np.arange(40, 60), np.arange(40)
        task = make_task(
            vectors[queries], labels[queries], gallery_embeddings=vectors[gallery], gallery_labels=labels[gallery]
        )
    else:
        queries = gallery = np.arange(60)
        task = make_task(vectors, labels)
    reorder = k_reciprocal(task, k1=8, k2=4, weight=0.3, depth=30)
    similarity = vectors[queries] @ vectors[gallery].T
    for row, query in enumerate(queries):
        plain = np.argsort(-similarity[row], kind="stable")
        plain = plain[gallery[plain] != query]
        found = reorder(np.array([row]), plain[None])[0]
        head = plain[:30][np.argsort(final[query, gallery[plain[:30]]], kind="stable")]
        np.testing.assert_allclose(final[query, gallery[found[:30]]], final[query, gallery[head]], atol=1e-6)
        np.testing.assert_array_equal(found[30:], plain[30:])


def test_reranking_within_an_evaluation_raises_the_score():
    task = make_task(*clusters(count=200, noise=1.0))
    plain = evaluate_task(task)
    better = evaluate_task(task, reorder=lambda part: k_reciprocal(part, depth=60))
    assert better.map_at_r > plain.map_at_r + 0.02
    assert better.num_queries == plain.num_queries


def test_top_scores_are_the_best_and_the_best_of_another_class():
    vectors, labels = clusters()
    found = top_scores(make_task(vectors, labels))
    similarity = np.float64(vectors) @ np.float64(vectors).T
    np.fill_diagonal(similarity, -2)
    np.testing.assert_allclose(found.best, similarity.max(axis=1), atol=1e-6)
    np.testing.assert_array_equal(found.is_hit, labels[similarity.argmax(axis=1)] == labels)
    others = np.where(labels[:, None] == labels, -2, similarity)
    np.testing.assert_allclose(found.best_other, others.max(axis=1), atol=1e-6)


@pytest.mark.parametrize("rate", [0, 0.05, 0.5])
def test_the_threshold_is_the_lowest_that_keeps_the_rate(rate):
    found = top_scores(make_task(*clusters()))
    no_match = calibrate(found, rate)
    assert no_match.false_accept_rate <= rate
    lower = measure(found, float(np.nextafter(np.float32(no_match.threshold), np.float32(-2))))
    assert lower.false_accept_rate > rate
    accepted = found.best >= np.float32(no_match.threshold)
    assert no_match.precision == pytest.approx(found.is_hit[accepted].mean())
    assert no_match.recall == pytest.approx((found.is_hit & accepted).mean())


def test_equal_strangers_are_all_refused_or_all_accepted():
    scores = TopScores(np.full(4, 0.9, np.float32), np.ones(4, bool), np.float32([0.5, 0.5, 0.5, 0.1]))
    assert calibrate(scores, 0.5).false_accept_rate == 0
    assert calibrate(scores, 0.75).false_accept_rate == 0.75
    with pytest.raises(InputError, match="cannot be measured on 4 queries"):
        calibrate(scores, 0.1)
    with pytest.raises(InputError, match="from 0 to below 1"):
        calibrate(scores, 1.0)
    assert measure(scores, 2.0).precision is None
