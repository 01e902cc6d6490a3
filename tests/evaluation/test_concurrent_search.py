"""What several threads read and search at a time: the same as one."""

import threading

import numpy as np
import pytest
import torch

from hgsl.common.errors import InputError
from hgsl.evaluation.knn import backends, knn, vectors
from hgsl.evaluation.knn.knn import k_nearest
from hgsl.evaluation.knn.order import Gallery
from hgsl.evaluation.knn.vectors import Vectors, open_vectors


def some_vectors(count=60, width=8):
    return np.random.default_rng(0).standard_normal((count, width)).astype(np.float32)


def search(backend, concurrency=3):
    images, ids = open_vectors(some_vectors()), np.arange(60)
    if backend is None:
        backend = backends.on_device(images, "cosine", 1 << 30, torch.device("cpu"))
    gallery = Gallery(images, ids, "cosine", backend, concurrency=concurrency)
    return k_nearest(gallery, images, np.full(60, 5), excluded=[(ids, ids)])


def test_blocks_in_work_at_a_time_change_nothing(monkeypatch):
    monkeypatch.setattr(knn, "BLOCK", 7)
    with torch.inference_mode():
        concurrent, one_by_one = list(search(None)), list(search(None, concurrency=1))
    assert len(concurrent) == 9
    for (rows, positions), (expected_rows, expected) in zip(concurrent, one_by_one, strict=True):
        np.testing.assert_array_equal(rows, expected_rows)
        np.testing.assert_array_equal(positions, expected)


def test_the_next_blocks_are_searched_while_a_caller_uses_the_last(monkeypatch):
    monkeypatch.setattr(knn, "BLOCK", 20)
    all_started = threading.Barrier(3, timeout=30)

    def backend(queries, count):
        all_started.wait()
        return np.full((len(queries), count), -np.inf, np.float32), np.full((len(queries), count), -1)

    assert len(list(search(backend))) == 3


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_rows_read_by_several_threads_are_those_of_one(dtype, monkeypatch):
    stored = some_vectors().astype(dtype)
    expected = open_vectors(stored)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    for name in ("THREAD_BYTES", "CHUNK_BYTES"):
        monkeypatch.setattr(vectors, name, 4 * 8 * 7)  # seven rows
    images = open_vectors(stored)
    np.testing.assert_array_equal(images.norms, expected.norms)
    matrix = backends._all_rows(images, torch.device("cpu"))
    np.testing.assert_array_equal(matrix.numpy(), expected.rows(slice(None)))
    stored[[30, 50]] = np.nan
    with pytest.raises(InputError, match=r"row 30 is not finite.*2 such rows"):
        open_vectors(stored)


@pytest.mark.parametrize("free", [0, 1 << 20])
def test_a_gallery_stays_on_a_device_whose_free_memory_holds_it(free, monkeypatch):
    monkeypatch.setattr(backends, "_free_memory", lambda device: free)
    data = some_vectors().astype(np.float16)
    backend = backends.on_device(Vectors(data, None, 9.0), "inner_product", 3000, torch.device("cpu"))
    queries = data.astype(np.float32)
    data[:] = 0  # visible only where the gallery is read again
    scores, _ = backend(queries, 1)
    assert (scores > 0).all() == (free > 0)
