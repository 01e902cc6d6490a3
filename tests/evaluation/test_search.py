"""The k nearest neighbors against a brute-force search in float64."""

from pathlib import Path

import faiss
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hgsl.common.errors import InputError
from hgsl.evaluation import evaluate_embeddings
from hgsl.evaluation.knn import backends, knn
from hgsl.evaluation.knn.knn import k_nearest
from hgsl.evaluation.knn.order import Gallery, neighbor_scores
from hgsl.evaluation.knn.vectors import open_vectors
from hgsl.evaluation.task import make_task


def brute_force(queries, gallery, k, query_ids, gallery_ids, metric="inner_product", keep=None):
    """Positions of the k nearest by (-score, id), a score being a float64 sum as float32; -1 beyond the last."""
    queries, gallery = np.float64(queries), np.float64(gallery)
    positions = np.full((len(queries), k), -1)
    for row, query in enumerate(queries):
        scores = gallery @ query if metric != "l2" else -((gallery - query) ** 2).sum(axis=1)
        allowed = gallery_ids != query_ids[row] if keep is None else keep[row]
        columns = np.flatnonzero(allowed)
        best = columns[np.lexsort((gallery_ids[columns], -scores[columns].astype(np.float32)))][:k]
        positions[row, : len(best)] = best
    return positions


def find(queries, gallery, k, query_ids, gallery_ids, *, metric="inner_product", maker=backends.on_cpu, **options):
    left, right = open_vectors(queries, unit=False), open_vectors(gallery, unit=False)
    searched = Gallery(right, gallery_ids, metric, maker(right, metric, options.get("max_memory", 1 << 30)))
    positions = np.empty((len(queries), k), dtype=np.int64)
    for rows, block in k_nearest(
        searched, left, np.full(len(queries), k), excluded=[(query_ids, gallery_ids)], **options
    ):
        positions[rows] = block
    return positions


def on_torch(gallery, metric, max_memory):
    return backends.on_device(gallery, metric, max_memory, torch.device("cpu"))


def unit(rng, count, width, kind="random"):
    rows = rng.standard_normal((count, width))
    if kind == "tied":  # few different directions, most of them many times
        rows = rng.integers(-1, 2, (count, width)) + 0.0
        rows[~rows.any(axis=1), 0] = 1
    if kind == "duplicated":
        rows = rows[rng.integers(0, max(1, count // 5), count)]
    if kind == "crowded":  # everything within a rounding error of everything else
        rows = rows[:1] + 1e-7 * rows
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("maker", [backends.on_cpu, on_torch])
@pytest.mark.parametrize("metric", ["inner_product", "l2"])
@pytest.mark.parametrize("kind", ["random", "tied", "duplicated", "crowded"])
def test_neighbors_are_those_of_brute_force(kind, metric, maker):
    rng = np.random.default_rng(0)
    vectors = unit(rng, 300, 8, kind)
    ids = rng.permutation(300)
    found = find(vectors, vectors, 20, ids, ids, metric=metric, maker=maker)
    np.testing.assert_array_equal(found, brute_force(vectors, vectors, 20, ids, ids, metric))


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(1, 60),
    width=st.integers(1, 6),
    k=st.integers(1, 70),
    kind=st.sampled_from(["random", "tied", "duplicated", "crowded"]),
    metric=st.sampled_from(["inner_product", "l2"]),
    shared_ids=st.integers(1, 60),
)
def test_neighbors_are_those_of_brute_force_whatever_the_sizes(seed, count, width, k, kind, metric, shared_ids):
    rng = np.random.default_rng(seed)
    queries, gallery = unit(rng, 7, width, kind), unit(rng, count, width, kind)
    query_ids, gallery_ids = rng.integers(0, shared_ids, 7), rng.integers(0, shared_ids, count)
    found = find(queries, gallery, k, query_ids, gallery_ids, metric=metric)
    expected = brute_force(queries, gallery, k, query_ids, gallery_ids, metric)
    # Rows with one id are equal before the rule: compare the ids, not the rows.
    np.testing.assert_array_equal(found < 0, expected < 0)
    np.testing.assert_array_equal(
        np.where(found < 0, -1, gallery_ids[found]), np.where(expected < 0, -1, gallery_ids[expected])
    )


@pytest.mark.parametrize("kind", ["random", "tied", "duplicated", "crowded"])
def test_order_depends_on_neither_depth_block_size_nor_threads(kind):
    rng = np.random.default_rng(1)
    vectors = unit(rng, 250, 32, kind)
    ids = rng.permutation(250)
    deepest = find(vectors, vectors, 100, ids, ids)
    for k in (1, 2, 19, 50):
        np.testing.assert_array_equal(find(vectors, vectors, k, ids, ids), deepest[:, :k])
    for max_memory in (30_000, 150_000, 1 << 20):  # 1 query at a time, a few, many
        np.testing.assert_array_equal(find(vectors, vectors, 100, ids, ids, max_memory=max_memory), deepest)
    threads = faiss.omp_get_max_threads()
    try:
        faiss.omp_set_num_threads(3)
        np.testing.assert_array_equal(find(vectors, vectors, 100, ids, ids), deepest)
    finally:
        faiss.omp_set_num_threads(threads)
    one_by_one = [find(vectors[[row]], vectors, 10, ids[[row]], ids)[0] for row in range(20)]
    np.testing.assert_array_equal(one_by_one, deepest[:20, :10])


def test_self_is_removed_by_id_and_duplicates_stay():
    vectors = np.eye(4, dtype=np.float32)[[0, 0, 0, 1]]
    ids = np.array([30, 10, 20, 40])
    found = find(vectors, vectors, 2, ids, ids)
    np.testing.assert_array_equal(ids[found[:3]], [[10, 20], [20, 30], [10, 30]])


def test_a_gallery_that_ends_is_padded():
    vectors = np.eye(3, dtype=np.float32)
    found = find(vectors, vectors, 5, np.arange(3), np.arange(3))
    np.testing.assert_array_equal(found >= 0, [[True, True, False, False, False]] * 3)


def test_only_hits_are_put_in_order_when_labels_are_given():
    rng = np.random.default_rng(2)
    vectors = unit(rng, 500, 16, "tied")
    labels, ids = rng.integers(0, 5, 500), np.arange(500)
    found = find(vectors, vectors, 60, ids, ids, labels=(labels, labels))
    expected = brute_force(vectors, vectors, 60, ids, ids)
    np.testing.assert_array_equal(labels[found] == labels[:, None], labels[expected] == labels[:, None])
    assert (found[:, :9] != expected[:, :9]).any()
    leading = find(vectors, vectors, 60, ids, ids, labels=(labels, labels), ordered=9)
    np.testing.assert_array_equal(leading[:, :9], expected[:, :9])
    np.testing.assert_array_equal(labels[leading] == labels[:, None], labels[expected] == labels[:, None])


def test_queries_of_different_depth_each_get_theirs():
    rng = np.random.default_rng(3)
    vectors, ids = open_vectors(unit(rng, 200, 8)), np.arange(200)
    depths = rng.integers(1, 150, 200)
    gallery = Gallery(vectors, ids, "cosine", backends.on_cpu(vectors, "cosine", 1 << 30))
    expected = brute_force(vectors.data, vectors.data, 150, ids, ids)
    seen = []
    for rows, positions in k_nearest(gallery, vectors, depths, excluded=[(ids, ids)], max_memory=400_000):
        for row, found in zip(rows, positions, strict=True):
            np.testing.assert_array_equal(found[: depths[row]], expected[row, : depths[row]])
        seen.extend(rows)
    assert sorted(seen) == list(range(200))


def test_a_backend_with_larger_errors_than_expected_is_detected(monkeypatch):
    rng = np.random.default_rng(4)
    data, ids = unit(rng, 300, 32), np.arange(300)
    vectors = open_vectors(data)
    truthful = backends.on_cpu(vectors, "cosine", 1 << 30)

    def rounded(queries, count):  # as a matrix unit with 10 bits of mantissa would
        scores, positions = truthful(queries, len(vectors))
        scores = scores.astype(np.float16).astype(np.float32)
        order = np.lexsort((rng.random(scores.shape), -scores), axis=1)[:, :count]
        return np.take_along_axis(scores, order, 1), np.take_along_axis(positions, order, 1)

    gallery = Gallery(vectors, ids, "cosine", rounded)
    found = np.concatenate([block for _, block in k_nearest(gallery, vectors, np.full(300, 40), excluded=[(ids, ids)])])
    np.testing.assert_array_equal(found, brute_force(data, data, 40, ids, ids))
    queries = data.copy()
    queries[7] = 0  # whose scores have no error and no noise
    gallery = Gallery(vectors, ids, "inner_product", rounded)
    found, compared = np.empty((300, 40), np.int64), []
    score_all = knn._score_all
    monkeypatch.setattr(
        knn, "_score_all", lambda request, rows, depth: compared.extend(rows) or score_all(request, rows, depth)
    )
    for rows, block in k_nearest(gallery, open_vectors(queries, unit=False), np.full(300, 40), excluded=[(ids, ids)]):
        found[rows] = block
    np.testing.assert_array_equal(found, brute_force(queries, data, 40, ids, ids))
    assert compared == [7]  # all of its scores are equal; the others need no more than their candidates


def test_images_of_the_querys_label_and_group_are_left_out():
    rng = np.random.default_rng(5)
    vectors = unit(rng, 120, 8)
    labels, groups = rng.integers(0, 6, 120), rng.integers(-2, 3, 120)
    task = make_task(vectors, labels, groups=groups)
    same = (labels[:, None] == labels) & (groups[:, None] == groups)
    keep = ~same & ~np.eye(120, dtype=bool)
    np.testing.assert_array_equal(task.relevant, ((labels[:, None] == labels) & keep).sum(axis=1))
    gallery = task.search_gallery(1 << 30)
    found = np.concatenate(
        [block for _, block in k_nearest(gallery, task.queries, np.full(120, 80), excluded=task.excluded)]
    )
    rows = np.concatenate(
        [rows for rows, _ in k_nearest(gallery, task.queries, np.full(120, 80), excluded=task.excluded)]
    )
    ids = np.arange(120)
    np.testing.assert_array_equal(found, brute_force(vectors, vectors, 80, ids, ids, keep=keep)[rows])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_stored_dtypes_are_searched_as_their_float32_values(dtype):
    rng = np.random.default_rng(6)
    stored = torch.from_numpy(unit(rng, 200, 16)).to(getattr(torch, dtype))
    values, ids = stored.float().numpy(), np.arange(200)
    if dtype != "bfloat16":
        stored = stored.numpy()
    expected = brute_force(values, values, 30, ids, ids)
    np.testing.assert_array_equal(find(stored, stored, 30, ids, ids), expected)
    # A budget so small that the gallery is converted and searched in several pieces.
    np.testing.assert_array_equal(find(stored, stored, 30, ids, ids, max_memory=9_000), expected)


def test_a_budget_below_one_query_is_refused():
    vectors = np.eye(3, dtype=np.float32)
    with pytest.raises(InputError, match="max_memory: 10 bytes"):
        find(vectors, vectors, 2, np.arange(3), np.arange(3), max_memory=10)


def test_an_approximate_index_finds_most_of_the_exact_neighbors():
    rng = np.random.default_rng(7)
    vectors, ids = unit(rng, 2000, 16), np.arange(2000)

    def maker(gallery, metric, max_memory):
        return backends.approximate(gallery, metric, "IVF16,Flat nprobe=12")

    right = open_vectors(vectors)
    gallery = Gallery(right, ids, "cosine", maker(right, "cosine", 0), exact=False)
    blocks = k_nearest(gallery, right, np.full(2000, 10), excluded=[(ids, ids)])
    found = np.concatenate([block for _, block in blocks])
    exact = brute_force(vectors, vectors, 10, ids, ids)
    share = np.mean([len(np.intersect1d(a, b)) / 10 for a, b in zip(found, exact, strict=True)])
    assert 0.9 < share < 1.0
    scores = neighbor_scores(right, found, right, ids, "cosine")
    assert (np.diff(scores, axis=1) <= 0).all()


@pytest.mark.parametrize("index", ["Nonsense", "IVF4096,Flat", "IVF4,Flat probes=3"])
def test_an_index_that_cannot_be_built_is_one_line(index):
    vectors = open_vectors(np.eye(40, dtype=np.float32))
    with pytest.raises(InputError, match=r"cannot be built for 40 vectors|FAISS cannot build") as error:
        backends.approximate(vectors, "cosine", index)
    assert "\n" not in str(error.value)


def test_memory_stays_within_the_budget():
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    except OSError:
        pytest.skip("this system does not let a process reset its own peak of memory")
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((30_000, 64), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    labels = np.arange(30_000) % 300
    queries, query_labels = vectors[:4000].copy(), labels[:4000]
    Path("/proc/self/clear_refs").write_text("5")
    before = kilobytes("VmHWM")
    evaluate_embeddings(
        queries, query_labels, (1, 500), gallery_embeddings=vectors, gallery_labels=labels, max_memory=80 << 20
    )
    assert kilobytes("VmHWM") - before < 80 << 10


def kilobytes(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def test_a_gpu_search_is_not_rounded_to_fewer_bits_than_float32(monkeypatch):
    """The order is settled only within the noise of true float32 sums; TensorFloat-32 has 1,000 times the error."""
    used = []
    plain = backends._scores
    monkeypatch.setattr(
        backends, "_scores", lambda *a: (used.append(torch.get_float32_matmul_precision()), plain(*a))[1]
    )
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        vectors, ids = unit(np.random.default_rng(8), 100, 8), np.arange(100)
        found = find(vectors, vectors, 5, ids, ids, maker=on_torch)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    assert set(used) == {"highest"}
    np.testing.assert_array_equal(found, brute_force(vectors, vectors, 5, ids, ids))
