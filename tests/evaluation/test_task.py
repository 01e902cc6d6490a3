"""Inputs of an evaluation: files, dtypes, roles, and invalid arguments."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from hgsl.common.errors import InputError
from hgsl.evaluation import evaluate_embeddings, load_array, make_task
from hgsl.evaluation.knn.vectors import open_vectors


def some(count=40, width=6, seed=0):
    rng = np.random.default_rng(seed)
    return np.float32(rng.standard_normal((count, width))), np.arange(count) % 4


def test_rows_are_read_at_unit_length_without_touching_the_stored_matrix():
    stored, _ = some()
    before = stored.copy()
    vectors = open_vectors(stored)
    np.testing.assert_allclose(np.linalg.norm(vectors.rows(slice(3, 30)), axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(vectors.rows(np.array([7, 7, 2])), vectors.rows(slice(None))[[7, 7, 2]])
    np.testing.assert_allclose(vectors.pick(np.array([9, 4])).rows(np.array([1])), vectors.rows(np.array([4])))
    np.testing.assert_array_equal(stored, before)
    assert not vectors.plain
    unit = before / np.linalg.norm(before, axis=1, keepdims=True)
    assert open_vectors(unit).plain
    assert np.shares_memory(open_vectors(unit).rows(slice(None)), unit)


def test_scores_do_not_depend_on_container_layout_or_length():
    vectors, labels = some()
    expected = evaluate_embeddings(vectors, labels).micro()
    for other in (
        torch.from_numpy(vectors).requires_grad_(),
        np.asfortranarray(vectors),
        vectors.astype(np.float64),
        vectors * np.random.default_rng(1).uniform(0.5, 2, (40, 1)).astype(np.float32),
        vectors.tolist(),
    ):
        assert evaluate_embeddings(other, torch.from_numpy(labels)).micro() == pytest.approx(expected)
    assert evaluate_embeddings(vectors, labels, metric="l2").micro() != expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_files_are_mapped_not_read(tmp_path, dtype):
    tensor = torch.from_numpy(some()[0]).to(dtype)
    save_file({"embeddings": tensor, "labels": torch.arange(40)}, tmp_path / "e.safetensors")
    found = load_array(tmp_path / "e.safetensors", "embeddings")
    np.testing.assert_array_equal(torch.as_tensor(found).float().numpy(), tensor.float().numpy())
    if dtype != torch.bfloat16:
        np.save(tmp_path / "e.npy", tensor.numpy())
        assert isinstance(load_array(tmp_path / "e.npy", "embeddings"), np.memmap)


def test_a_file_is_searched_from_the_disk(tmp_path):
    vectors, labels = some()
    np.save(tmp_path / "e.npy", vectors.astype(np.float16))
    mapped = load_array(tmp_path / "e.npy", "embeddings")
    expected = evaluate_embeddings(vectors.astype(np.float16).astype(np.float32), labels).micro()
    assert evaluate_embeddings(mapped, labels).micro() == expected


def test_bfloat16_in_an_npy_file_is_named(tmp_path):
    np.save(tmp_path / "e.npy", np.zeros((3, 2), dtype="V2"))
    with pytest.raises(InputError, match=r"store bfloat16 as \.safetensors"):
        load_array(tmp_path / "e.npy", "embeddings")


def test_roles_choose_queries_and_gallery():
    vectors, labels = some()
    is_query, is_gallery = np.arange(40) < 10, np.arange(40) >= 5
    result = evaluate_embeddings(vectors, labels, is_query=is_query, is_gallery=is_gallery)
    expected = evaluate_embeddings(
        vectors[:10],
        labels[:10],
        ids=np.arange(10),
        gallery_embeddings=vectors[5:],
        gallery_labels=labels[5:],
        gallery_ids=np.arange(5, 40),
    )
    assert result.micro() == expected.micro()
    assert (result.num_queries, result.num_gallery) == (10, 35)


def test_any_64_bit_number_is_a_group():
    rng = np.random.default_rng(3)
    cameras, labels = rng.integers(0, 4, 60), rng.integers(0, 5, 60)
    vectors = rng.normal(size=(60, 8)).astype(np.float32)
    expected = make_task(vectors, labels, groups=cameras + 11)
    for numbers in ([-7, -22, 33, -44], [-(2**63), 2**63 - 1, -1, 0]):
        task = make_task(vectors, labels, groups=np.array(numbers)[cameras])
        assert task.relevant.tolist() == expected.relevant.tolist()
    for numbers in ([2**64 - 2, 2**63, 5, 6], [2**64 - 2, -7, 2**63 - 1, 0]):  # for which NumPy chooses float64
        task = make_task(vectors, labels, groups=[numbers[camera] for camera in cameras])
        assert task.relevant.tolist() == expected.relevant.tolist()
    for numbers in ([2**64, -7, 3, 0], [0.5, 1, 2, 3]):
        with pytest.raises(InputError, match="groups: expected 60 integers"):
            make_task(vectors, labels, groups=[numbers[camera] for camera in cameras])
    for numbers in ([-7, -22, 33, -44], [-(2**63), 2**63 - 1, -1, 0]):
        paired = make_task(
            vectors,
            labels,
            groups=np.array(numbers)[cameras],
            gallery_embeddings=vectors,
            gallery_labels=labels,
            gallery_groups=np.array(numbers)[cameras],
        )
        assert paired.relevant.tolist() == expected.relevant.tolist()


def test_labels_of_every_form_give_the_same_scores():
    vectors, labels = some()
    expected = evaluate_embeddings(vectors, labels, 5)
    assert expected.ks == (5,)
    names = np.array(["owl", "hen", "jay", "tit"])
    for form in (
        labels.tolist(),
        labels.astype(np.int32),
        names[labels],
        names[labels].tolist(),
        names[labels].astype(object),
        names[labels].astype(np.dtypes.StringDType()),
    ):
        assert evaluate_embeddings(vectors, form, [5]).micro() == expected.micro()
    result = evaluate_embeddings(vectors, names[labels])
    assert [result.class_names[label] for label in result.query_labels] == names[labels].tolist()
    paired = {"gallery_embeddings": vectors, "ids": labels, "gallery_ids": labels + 9}
    mixed = evaluate_embeddings(vectors, names[labels], gallery_labels=names[labels], **paired)
    assert mixed.micro() == evaluate_embeddings(vectors, labels, gallery_labels=labels, **paired).micro()
    with pytest.raises(InputError, match="one holds text and the other numbers"):
        evaluate_embeddings(vectors, names[labels], gallery_labels=labels, **paired)


def test_ids_near_the_end_of_64_bits():
    vectors, labels = some()
    largest = np.iinfo(np.int64).max
    expected = evaluate_embeddings(vectors, labels).micro()
    for ids in (largest - np.arange(40), np.arange(40) - largest - 1):
        assert evaluate_embeddings(vectors, labels, ids=ids).micro() == expected
    separate = {"gallery_embeddings": vectors, "gallery_labels": labels}
    task = make_task(vectors, labels, ids=largest - np.arange(40), **separate)
    assert not np.intersect1d(task.query_ids, task.gallery_ids).size
    assert len(np.unique(task.gallery_ids)) == 40
    with pytest.raises(InputError, match="ids: 18446744073709551615 does not fit"):
        evaluate_embeddings(vectors, labels, ids=np.full(40, 2**64 - 1, dtype=np.uint64))
    groups = np.arange(40, dtype=np.uint64) // 20 + np.uint64(2**64 - 5)
    assert (
        make_task(vectors, labels, groups=groups).relevant
        == make_task(vectors, labels, groups=labels * 0 + np.arange(40) // 20).relevant
    ).all()


def test_relevant_images_are_counted_less_those_left_out():
    labels = np.array([0, 0, 0, 1, 1, 2])
    ids = np.array([1, 1, 2, 3, 4, 5])  # the first two are views of one image
    groups = np.array([0, 1, 0, 7, 7, 8])
    vectors = np.eye(6, dtype=np.float32)
    assert make_task(vectors, labels, ids=ids).relevant.tolist() == [1, 1, 2, 1, 1, 0]
    assert make_task(vectors, labels, ids=ids, groups=groups).relevant.tolist() == [0, 1, 1, 0, 0, 0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"labels": np.zeros(39, int)},
            "labels: expected 40 integers or class names, one per image, found int64 of shape (39,)",
        ),
        ({"labels": np.zeros(40)}, "labels: expected 40 integers"),
        ({"embeddings": np.zeros(40)}, "expected a matrix"),
        ({"embeddings": np.zeros((40, 6), int)}, "expected a matrix (images, dimensions) of floats, found int64"),
        ({"labels": np.array([None] * 40)}, "labels: expected 40 integers or class names"),
        ({"embeddings": np.zeros((40, 6), np.float32)}, "row 0 is zero: are the images too small"),
        (
            {"embeddings": np.full((40, 6), 1e-30, np.float32)},
            "row 0 has values up to 1e-30, whose squares are outside",
        ),
        (
            {"embeddings": np.full((40, 6), 1e-21, np.float32)},
            "row 0 has values up to 1e-21, whose squares are outside",
        ),
        ({"embeddings": np.full((40, 6), 1e30)}, "row 0 has values up to 1e+30, whose squares are outside"),
        ({"max_memory": "1G"}, "max_memory must be a whole number of at least 1, found '1G'"),
        ({"ids": np.zeros(3, int)}, "ids: expected 40 integers"),
        ({"gallery_labels": np.zeros(40, int)}, "gallery_labels needs gallery_embeddings"),
        ({"gallery_embeddings": np.ones((4, 6))}, "gallery_embeddings needs gallery_labels"),
        (
            {"gallery_embeddings": np.ones((4, 5)), "gallery_labels": np.zeros(4, int)},
            "gallery_embeddings have 5 dimensions and embeddings 6",
        ),
        (
            {"gallery_embeddings": np.ones((4, 6)), "gallery_labels": np.zeros(4, int), "gallery_ids": np.arange(4)},
            "gallery_ids needs ids",
        ),
        (
            {"gallery_embeddings": np.ones((4, 6)), "gallery_labels": np.zeros(4, int), "is_query": np.ones(40, bool)},
            "leave them out, or gallery_embeddings",
        ),
        (
            {"gallery_embeddings": np.ones((4, 6)), "gallery_labels": np.zeros(4, int), "groups": np.zeros(40, int)},
            "groups and gallery_groups must be given together",
        ),
        ({"is_query": np.zeros(40, bool)}, "is_query: chooses none of the 40 images"),
        ({"is_gallery": np.ones(40)}, "is_gallery: expected 40 booleans"),
        ({"ks": ()}, "ks: give at least one K"),
        ({"ks": (1, 2.5)}, "at least 1, found 2.5"),
        ({"labels": np.arange(40)}, "none of the 40 queries has another image of its label"),
        ({"device": "gpu"}, "unknown device 'gpu'"),
        ({"metric": "euclidean"}, "unknown metric 'euclidean'"),
    ],
)
def test_mistakes_name_the_argument(arguments, message):
    vectors, labels = some()
    with pytest.raises(InputError) as error:
        evaluate_embeddings(**{"embeddings": vectors, "labels": labels, **arguments})
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_vectors_of_eight_bits_are_read_as_they_are():
    vectors, labels = some()
    rounded = torch.tensor(vectors).to(torch.float8_e4m3fn)
    expected = evaluate_embeddings(rounded.float(), labels)
    assert evaluate_embeddings(rounded, labels).micro() == expected.micro()


def test_values_beyond_float32_give_no_warning(recwarn):
    vectors, labels = some()
    with pytest.raises(InputError, match=r"values up to 1e\+100"):
        evaluate_embeddings(np.full_like(vectors, 1e100, dtype=np.float64), labels)
    assert not recwarn.list
