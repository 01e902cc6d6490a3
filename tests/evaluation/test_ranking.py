"""One search of a task, and all results derived from it."""

import numpy as np
import pytest

from hgsl.common.errors import InputError
from hgsl.evaluation import evaluate_embeddings, make_task, rank
from hgsl.evaluation import ranking as ranking_module
from hgsl.evaluation.knn import knn
from hgsl.evaluation.refine import rerank
from hgsl.evaluation.refine.rerank import KReciprocal
from tests.helpers import clusters


@pytest.fixture
def searches(monkeypatch):
    """The number of queries of each search, as they are made."""
    calls = []

    def counting(gallery, queries, *arguments, **options):
        calls.append(len(queries))
        return knn.k_nearest(gallery, queries, *arguments, **options)

    for module in (ranking_module, rerank):
        monkeypatch.setattr(module, "k_nearest", counting)
    return calls


def reciprocal_distances(vectors, k1, k2, weight):
    """Distances of the paper, by Python sets."""
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


def reranked_orders(vectors, labels, queries, gallery, reorder):
    """For each query with a match: its gallery images, the first ``depth`` of the plain order reordered."""
    final = reciprocal_distances(vectors, reorder.k1, reorder.k2, reorder.weight)
    similarity = np.float64(vectors) @ np.float64(vectors).T
    for query in queries:
        others = [g for g in sorted(gallery, key=lambda g: -similarity[query, g]) if g != query]
        if any(labels[g] == labels[query] for g in others):
            head = sorted(others[: reorder.depth], key=lambda g: final[query, g])
            yield query, head + others[reorder.depth :]


def scores_by_loops(orders, labels, ks):
    scores = {}
    for query, order in orders:
        hits = np.array([labels[g] == labels[query] for g in order])
        relevant = hits.sum()
        precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
        values = {
            "r_precision": hits[:relevant].mean(),
            "map@r": (precision * hits)[:relevant].sum() / relevant,
            **{f"recall@{k}": float(hits[:k].any()) for k in ks},
            **{f"precision@{k}": hits[:k].sum() / k for k in ks},
        }
        for key, value in values.items():
            scores.setdefault(key, []).append(value)
    return {key: np.mean(values) for key, values in scores.items()}


@pytest.mark.parametrize("case", ["itself", "singletons", "roles", "apart"])
def test_reranked_scores_are_those_of_reranking_by_sets_whatever_the_ks(case):
    vectors, labels = clusters(count=60, noise=1.2)
    reorder, everything = KReciprocal(k1=8, k2=4, weight=0.3, depth=12), np.arange(60)
    if case == "singletons":
        labels = np.where(everything % 7 == 0, 100 + everything, labels)
    if case == "roles":
        queries, gallery = np.arange(30, 60), np.arange(50)
        task = make_task(vectors, labels, is_query=everything >= 30, is_gallery=everything < 50)
    elif case == "apart":
        queries, gallery = np.arange(40, 60), np.arange(40)
        task = make_task(
            vectors[queries], labels[queries], gallery_embeddings=vectors[gallery], gallery_labels=labels[gallery]
        )
    else:
        queries = gallery = everything
        task = make_task(vectors, labels)
    orders = list(reranked_orders(vectors, labels, queries, gallery, reorder))
    plain = rank(task).result
    for ks in ((1,), (1, 2, 4, 8), (3, 30)):
        ranking = rank(task, ks, reorder=reorder, top=6)
        scores = ranking.result.micro()
        for key, expected in scores_by_loops(orders, labels, ks).items():
            assert scores[key] == pytest.approx(expected), key
        np.testing.assert_array_equal(
            gallery[ranking.neighbors.positions], np.array([order[:6] for _, order in orders])
        )
    assert ranking.result.map_at_r != plain.map_at_r


@pytest.mark.parametrize("top", [0, 3, 8, 500])
def test_scores_do_not_depend_on_what_is_kept(top):
    vectors, labels = clusters(noise=1.0)
    vectors = np.round(vectors, 1) + np.float32(1e-3)  # many equal scores
    ranking = rank(make_task(vectors, labels), (1, 7), top=top)
    expected = evaluate_embeddings(vectors, labels, (1, 7))
    for key, values in expected.per_query.items():
        np.testing.assert_array_equal(ranking.result.per_query[key], values)
    assert ranking.neighbors.ids.shape == (120, min(top, 120))


@pytest.mark.parametrize("index", ["Flat", "IVF2,Flat nprobe=2"])
def test_a_k_beyond_the_gallery_takes_no_more_memory_than_the_whole_gallery(index):
    task = make_task(*clusters(count=30, classes=5))
    largest = rank(task, (1, 10**12), index=index).result.micro()
    whole = rank(task, (1, 30), index=index).result.micro()
    assert largest[f"recall@{10**12}"] == whole["recall@30"] == 1
    assert largest[f"precision@{10**12}"] == pytest.approx(whole["precision@30"] * 30 / 10**12)
    assert largest["map@r"] == whole["map@r"]


def test_neighbors_are_in_the_order_of_the_scores_and_carry_exact_ones():
    vectors, labels = clusters()
    ranking = rank(make_task(vectors, labels, ids=np.arange(120) + 7), (1, 8))
    neighbors, result = ranking.neighbors, ranking.result
    np.testing.assert_array_equal(neighbors.hits[:, 0], result.per_query["recall@1"])
    np.testing.assert_array_equal(neighbors.hits.sum(axis=1) / 8, result.per_query["precision@8"])
    similarity = np.float64(vectors) @ np.float64(vectors).T
    for row in (0, 50, 119):
        order = [g for g in np.argsort(-similarity[row]) if g != row][:8]
        np.testing.assert_array_equal(neighbors.ids[row], np.array(order) + 7)
        np.testing.assert_array_equal(neighbors.scores[row], np.float32(similarity[row, order]))
    small = rank(make_task(vectors[:4], np.array([0, 0, 1, 1])), top=8).neighbors
    assert small.present.tolist() == [[True, True, True, False]] * 4
    assert np.isinf(small.scores[:, 3]).all()


def test_one_search_serves_scores_neighbors_and_threshold(searches):
    vectors, labels = clusters()
    rank(make_task(vectors, labels), (1, 50))
    assert searches == [120]


def test_reranking_among_all_needs_no_further_search(searches):
    vectors, labels = clusters()
    labels[0] = 99  # an image that does not count as a query still has a neighborhood
    ranking = rank(make_task(vectors, labels), reorder=KReciprocal())
    assert searches == [120]
    assert ranking.result.num_queries == 119


def test_reranking_of_separate_queries_searches_the_union_once(searches):
    vectors, labels = clusters()
    options = {"gallery_embeddings": vectors[40:], "gallery_labels": labels[40:]}
    rank(make_task(vectors[:40], labels[:40], **options), reorder=KReciprocal())
    assert searches == [40, 120]


def test_top_scores_are_the_best_and_the_best_of_another_class():
    vectors, labels = clusters()
    similarity = np.float64(vectors) @ np.float64(vectors).T
    np.fill_diagonal(similarity, -2)
    others = np.where(labels[:, None] == labels, -2, similarity)
    for reorder in (None, KReciprocal()):
        scores = rank(make_task(vectors, labels), reorder=reorder).top_scores
        np.testing.assert_allclose(scores.best, similarity.max(axis=1), atol=1e-6)
        np.testing.assert_array_equal(scores.is_hit, labels[similarity.argmax(axis=1)] == labels)
        np.testing.assert_allclose(scores.best_other, others.max(axis=1), atol=1e-6)


def test_reranking_parameters_out_of_range_are_refused():
    with pytest.raises(InputError, match="k1, k2, depth >= 1"):
        KReciprocal(k1=0)
    with pytest.raises(InputError, match="cosine similarities, but the metric is 'l2'"):
        rank(make_task(*clusters(), metric="l2"), reorder=KReciprocal())
    with pytest.raises(InputError, match="top must be at least 0, found -1"):
        rank(make_task(*clusters()), top=-1)
    with pytest.raises(InputError, match="task is of type ndarray: expected that of make_task"):
        rank(clusters()[0])
