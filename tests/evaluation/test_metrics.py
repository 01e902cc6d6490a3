"""Metrics against loops, scikit-learn and pytorch-metric-learning."""

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from sklearn.neighbors import NearestNeighbors

from hgsl.common.errors import InputError
from hgsl.evaluation import evaluate_embeddings, metrics

CASES = ["random", "tied", "duplicated", "single-member", "unbalanced"]


def make(case, seed=0, count=240):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 12, count)
    if case == "single-member":
        labels[:15] = 100 + np.arange(15)
    if case == "unbalanced":
        labels = np.repeat([0, 1, 2, 3, 4], [150, 60, 20, 8, 2])
    centers = rng.standard_normal((200, 10))
    vectors = centers[labels] + 1.2 * rng.standard_normal((count, 10))
    if case == "tied":
        vectors = np.round(vectors)
    if case == "duplicated":
        vectors[1::2] = vectors[::2]
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32), labels


def by_loops(vectors, labels, ks):
    """Every metric from its definition, one query at a time."""
    scores = {}
    exact = np.float64(vectors)
    for query in range(len(labels)):
        others = np.delete(np.arange(len(labels)), query)
        similarity = (exact[others] @ exact[query]).astype(np.float32)
        ranked = labels[others[np.lexsort((others, -similarity))]] == labels[query]
        relevant = int(ranked.sum())
        if not relevant:
            continue
        precision = [ranked[: i + 1].mean() for i in range(len(ranked))]
        found = {}
        for k in ks:
            found[f"recall@{k}"] = float(any(ranked[:k]))
            found[f"precision@{k}"] = sum(ranked[:k]) / k
            found[f"map@{k}"] = np.mean([p for p, hit in zip(precision[:k], ranked, strict=False) if hit] or [0])
        found["r_precision"] = sum(ranked[:relevant]) / relevant
        found["map@r"] = sum(p for p, hit in zip(precision[:relevant], ranked, strict=False) if hit) / relevant
        found[f"mrr@{max(ks)}"] = next((1 / (i + 1) for i in range(max(ks)) if ranked[i]), 0)
        for key, value in found.items():
            scores.setdefault(key, []).append(value)
    return {key: np.mean(values) for key, values in scores.items()}


@pytest.mark.parametrize("case", CASES)
def test_every_metric_matches_its_definition(case):
    vectors, labels = make(case)
    result = evaluate_embeddings(vectors, labels, ks=(1, 3, 10, 100))
    expected = by_loops(vectors, labels, (1, 3, 10, 100))
    assert result.micro() == pytest.approx(expected, abs=1e-12)
    assert result.recall[3] == pytest.approx(expected["recall@3"])
    assert result.map_at_k[10] == pytest.approx(expected["map@10"])
    assert result.mrr == pytest.approx(expected["mrr@100"])


@pytest.mark.parametrize("case", CASES)
def test_parity_with_pytorch_metric_learning(case):
    calculator = pytest.importorskip("pytorch_metric_learning.utils.accuracy_calculator").AccuracyCalculator
    vectors, labels = make(case)
    if case == "tied":  # pytorch-metric-learning breaks ties in another order: compare where no tie mixes labels
        vectors = vectors + np.float32(1e-3) * np.random.default_rng(9).standard_normal(vectors.shape).astype(
            np.float32
        )
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    if case == "duplicated":  # likewise: two images at one point get one label
        labels[1::2] = labels[::2]
    ours = evaluate_embeddings(vectors, labels, (1, 150))
    theirs = calculator(
        include=("precision_at_1", "r_precision", "mean_average_precision_at_r", "mean_reciprocal_rank"),
        k=150,
        device=torch.device("cpu"),
    ).get_accuracy(vectors, labels)
    assert ours.precision[1] == pytest.approx(theirs["precision_at_1"], abs=1e-6)
    assert ours.r_precision == pytest.approx(theirs["r_precision"], abs=1e-6)
    assert ours.map_at_r == pytest.approx(theirs["mean_average_precision_at_r"], abs=1e-6)
    assert ours.mrr == pytest.approx(theirs["mean_reciprocal_rank"], abs=1e-6)


@pytest.mark.parametrize("average", [False, True])
def test_separate_gallery_and_class_averages_match_pytorch_metric_learning(average):
    calculator = pytest.importorskip("pytorch_metric_learning.utils.accuracy_calculator").AccuracyCalculator
    vectors, labels = make("unbalanced")
    pick = np.random.default_rng(1).permutation(len(labels))
    queries, gallery = pick[:80], pick[80:]
    result = evaluate_embeddings(
        vectors[queries], labels[queries], gallery_embeddings=vectors[gallery], gallery_labels=labels[gallery]
    )
    ours = result.macro() if average else result.micro()
    theirs = calculator(
        include=("precision_at_1", "r_precision", "mean_average_precision_at_r"),
        avg_of_avgs=average,
        k="max_bin_count",
        device=torch.device("cpu"),
    ).get_accuracy(vectors[queries], labels[queries], vectors[gallery], labels[gallery])
    assert ours["precision@1"] == pytest.approx(theirs["precision_at_1"], abs=1e-6)
    assert ours["r_precision"] == pytest.approx(theirs["r_precision"], abs=1e-6)
    assert ours["map@r"] == pytest.approx(theirs["mean_average_precision_at_r"], abs=1e-6)


def test_k_beyond_the_gallery_differs_from_pytorch_metric_learning():
    """FAISS pads with position -1; pytorch-metric-learning reads it as the last image, and counts wrongly."""
    calculator = pytest.importorskip("pytorch_metric_learning.utils.accuracy_calculator").AccuracyCalculator
    vectors, labels = np.eye(4, dtype=np.float32), np.array([0, 1, 2, 0])
    ours = evaluate_embeddings(vectors, labels, (1, 10))
    assert ours.num_queries == 2
    assert ours.precision[10] == pytest.approx(1 / 10)  # one match exists; the divisor stays K
    assert ours.recall[10] == 1
    theirs = calculator(include=("mean_average_precision",), k=10, device=torch.device("cpu"))
    assert theirs.get_accuracy(vectors, labels)["mean_average_precision"] > 1  # not a mean of precisions any more


def test_a_query_without_a_match_differs_from_the_published_code():
    """The published code counts such a query as 0; here, as in pytorch-metric-learning, it is left out and counted."""
    vectors, labels = np.eye(3, dtype=np.float32)[[0, 0, 1, 2]], np.array([0, 0, 1, 2])
    result = evaluate_embeddings(vectors, labels)
    assert (result.num_queries, result.num_skipped, result.num_gallery) == (2, 2, 4)
    assert result.recall[1] == result.map_at_r == 1


def test_map_at_full_depth_is_the_average_precision_of_scikit_learn():
    vectors, labels = make("random")
    result = evaluate_embeddings(vectors, labels, (len(labels) - 1,))
    others = ~np.eye(len(labels), dtype=bool)
    similarity = np.float64(vectors) @ np.float64(vectors).T
    expected = [
        average_precision_score(labels[others[query]] == labels[query], similarity[query, others[query]])
        for query in range(len(labels))
    ]
    assert result.map_at_k[len(labels) - 1] == pytest.approx(np.mean(expected), abs=1e-9)


def test_precision_matches_the_neighbors_of_scikit_learn():
    vectors, labels = make("random")
    _, found = NearestNeighbors(n_neighbors=11, algorithm="brute").fit(vectors).kneighbors(vectors)
    expected = (labels[found[:, 1:]] == labels[:, None]).mean()
    assert evaluate_embeddings(vectors, labels, (10,)).precision[10] == pytest.approx(expected, abs=1e-6)


def test_macro_is_the_mean_of_the_per_class_means():
    vectors, labels = make("unbalanced")
    result = evaluate_embeddings(vectors, labels)
    counts, scores = result.per_class()
    assert counts == {0: 150, 1: 60, 2: 20, 3: 8, 4: 2}
    hits = result.per_query["recall@1"]
    assert scores["recall@1"][1] == pytest.approx(hits[result.query_labels == 1].mean())
    assert result.macro()["recall@1"] == pytest.approx(np.mean([hits[labels == c].mean() for c in range(5)]))


def test_map_at_k_ignores_matches_beyond_k_and_map_at_r_does_not():
    hits = np.array([[True, False, False, False]])
    assert metrics.map_at_k(hits, 4) == 1
    assert metrics.map_at_r(hits, np.array([4])) == 0.25


@pytest.mark.parametrize(
    "function", [metrics.recall_at_k, metrics.precision_at_k, metrics.map_at_k, metrics.reciprocal_rank]
)
def test_a_rank_below_one_is_refused(function):
    with pytest.raises(InputError, match="K must be a rank of at least 1, found 0"):
        function(np.ones((1, 3), dtype=bool), 0)


def test_nmi_and_ami_of_clusters_that_are_the_classes():
    labels = np.arange(150) % 3
    vectors = np.float32(np.eye(4)[labels] + 0.05 * np.random.default_rng(0).standard_normal((150, 4)))
    result = evaluate_embeddings(vectors, labels, cluster=True).to_dict()
    assert result["nmi"] == pytest.approx(1)
    assert result["ami"] == pytest.approx(1)
    shuffled = evaluate_embeddings(vectors, np.random.default_rng(0).permutation(labels), cluster=True).to_dict()
    assert abs(shuffled["ami"]) < 0.1
