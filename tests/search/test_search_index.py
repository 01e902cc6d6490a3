"""Search results, compared with all similarities in float64."""

import copy
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

import hgsl
from hgsl.common.errors import InputError
from hgsl.search import SearchIndex, build_index
from hgsl.search.query_sheet import write_query_sheet


def stored(index):
    return np.load(index.store.folder / index.record["files"]["embeddings"]).astype(np.float64)


def oracle(index, query, k, rows=None):
    """Ids and similarities of the k nearest images, equal ones by id."""
    vectors = stored(index)
    rows = np.arange(len(vectors)) if rows is None else rows
    scores = (vectors[rows] @ (query / np.linalg.norm(query))).astype(np.float32)
    order = np.lexsort((rows, -scores))[:k]
    return rows[order].tolist(), scores[order]


def test_public_name(index):
    assert hgsl.SearchIndex is SearchIndex


def test_vectors_find_the_nearest_images(index):
    queries = np.random.default_rng(0).standard_normal((7, 16)).astype(np.float32)
    for hits, query in zip(index.search(queries, k=5), queries, strict=True):
        ids, scores = oracle(index, query.astype(np.float64), 5)
        assert [hit.id for hit in hits] == ids
        np.testing.assert_allclose([hit.similarity for hit in hits], scores, atol=1e-6)
    one = index.search(torch.from_numpy(queries[0]), k=5)
    assert [hit.id for hit in one[0]] == [hit.id for hit in index.search(queries, k=5)[0]]


def test_an_image_finds_itself_in_every_query_type(index, photos):
    path = photos / "kind_03/02.jpg"
    for query in (path, str(path), Image.open(path)):
        [hits] = index.search(query, k=3)
        assert hits[0].path == "kind_03/02.jpg"
        assert hits[0].label == "kind_03"
        assert hits[0].similarity == pytest.approx(1, abs=1e-4)
    assert len(index.search([path, path, path], k=1)) == 3
    assert index.search([], k=1) == []


def test_a_label_filters_exactly(index):
    query = np.random.default_rng(1).standard_normal(16).astype(np.float32)
    rows = np.array([number for number in range(24) if index.image(number).label == "kind_02"])
    [hits] = index.search(query, k=10, label="kind_02")
    assert [hit.id for hit in hits] == oracle(index, query.astype(np.float64), 10, rows)[0]
    assert {hit.label for hit in hits} == {"kind_02"}
    assert len(hits) == 4
    with pytest.raises(InputError, match="did you mean 'kind_02'"):
        index.search(query, label="kind_02x")


def test_similar_excludes_the_image_itself(index):
    for number in range(len(index)):
        ids, _ = oracle(index, stored(index)[number], 6)
        assert [hit.id for hit in index.similar(number, 5)] == [i for i in ids if i != number][:5]
    assert len(index.similar(0, 1000)) == 23
    with pytest.raises(InputError, match="k must be at least 1, found 0"):
        index.similar(0, 0)


def test_copies_are_ranked_by_path(tmp_path, run, photos):
    for name in ("b", "a", "c"):
        (photos / f"kind_00/copy_{name}.jpg").write_bytes((photos / "kind_00/00.jpg").read_bytes())
    build_index(tmp_path / "index", photos, checkpoint=run, device="cpu", progress=False)
    [hits] = SearchIndex.open(tmp_path / "index").search(photos / "kind_00/00.jpg", k=4)
    assert [hit.path for hit in hits] == ["kind_00/00.jpg"] + [f"kind_00/copy_{name}.jpg" for name in "abc"]


def test_the_threshold_decides_what_is_a_match(tmp_path, index, run, photos):
    query = np.random.default_rng(0).standard_normal(16).astype(np.float32)
    [hits] = index.search(query, k=2)
    assert index.accepts(hits) is None
    best = np.float32(hits[0].similarity)
    for threshold, matches in ((best, True), (np.nextafter(best, np.float32(1)), False)):
        build_index(index.store.folder, photos, no_match=float(threshold), device="cpu", progress=False)
        again = SearchIndex.open(index.store.folder)
        assert again.accepts(again.search(query, k=2)[0]) is matches
        assert again.accepts([]) is False


@pytest.mark.parametrize(
    ("query", "options", "message"),
    [
        (np.ones((1, 16), np.float32), {"label": 5}, "label is 5: expected a label, or several"),
        (np.ones((1, 16), np.float32), {"label": []}, "label is an empty list: give a label, or None"),
        (np.ones((1, 16), np.float32), {"where": 5}, "where is 5: expected a condition such as"),
        (np.ones((1, 8), np.float32), {}, "queries have 8 dimensions, the index has 16"),
        (np.full((1, 16), np.nan, np.float32), {}, "row 0 is not finite"),
        (np.zeros((1, 16), np.float32), {}, "row 0 is zero"),
        (np.ones((1, 16), np.int64), {}, "a matrix"),
        (np.ones((1, 16), np.float32), {"k": 0}, "k must be at least 1"),
        ("nowhere.jpg", {}, "does not exist"),
    ],
)
def test_mistakes_are_named(index, query, options, message):
    with pytest.raises(InputError, match=message):
        index.search(query, **options)


def test_numbers_outside_the_index_are_refused(index):
    for number in (-1, 24):
        with pytest.raises(InputError, match="not in the index"):
            index.path(number)


def test_a_sheet_has_a_line_per_query(tmp_path, index, photos):
    queries = [photos / "kind_00/00.jpg", photos / "kind_01/00.jpg"]
    results = index.search(queries, k=3)
    (photos / "kind_00/00.jpg").rename(photos / "moved.jpg")  # deleted since it was indexed: a gray tile
    write_query_sheet(tmp_path / "sheet.png", index, queries, results)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 4 * 160
        assert sheet.height > 2 * 160
    with pytest.raises(InputError, match=r"sheet\.nothing"):
        write_query_sheet(tmp_path / "sheet.nothing", index, queries, results)


@pytest.mark.parametrize("k", [True, 2.0, "5", None])
def test_k_must_be_a_whole_number(index, k):
    with pytest.raises(InputError, match="k must be a whole number of at least 1, found"):
        index.search(np.ones(index.record["dimensions"], np.float32), k)


@pytest.mark.parametrize("query", [None, 3, [3], ["x.jpg", None]])
def test_a_query_of_another_type_is_named(index, query, monkeypatch):
    monkeypatch.setattr(index.encoder, "read", lambda _: torch.zeros(3, 8, 8))
    with pytest.raises(InputError, match=r"images is (None|3): expected a path, a PIL image or vectors"):
        index.search(query)


def test_paths_of_another_type_are_named(tmp_path):
    with pytest.raises(InputError, match="folder is None: expected the path of an index"):
        SearchIndex.open(None)
    for name in ("images", "labels", "checkpoint"):
        with pytest.raises(InputError, match=f"{name} is 3: expected a path"):
            build_index(tmp_path / "index", **{"images": tmp_path, name: 3})


def test_a_similarity_is_at_most_1(index):
    vector = index.vector(3) * np.float32(1 + 5e-6)  # as rounding makes it, only more
    assert index.nearest(vector[None], 1)[0][0].similarity == 1


def test_no_queries_have_no_results(index):
    assert index.search([]) == index.search(np.empty((0, 16), np.float32)) == []
    assert index.embed([]).shape == (0, 16)


def test_numbers_of_numpy_are_numbers(index):
    assert np.int64(3) in index
    assert np.int64(24) not in index
    assert "3" not in index


def test_another_process_opens_the_index_again(index, photos):
    [hits] = index.search(photos / "kind_00/00.jpg", k=3)
    for copied in (pickle.loads(pickle.dumps(index)), copy.deepcopy(index)):
        assert copied.search(photos / "kind_00/00.jpg", k=3) == [hits]
