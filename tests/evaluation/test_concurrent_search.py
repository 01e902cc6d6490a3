"""Blocks of queries in work at a time, while a device searches: the same results as one by one, and prompt errors."""

import threading

import numpy as np
import pytest
import torch

from hgsl.evaluation.knn import backends, knn
from hgsl.evaluation.knn.knn import k_nearest
from hgsl.evaluation.knn.order import Gallery
from hgsl.evaluation.knn.vectors import Vectors, open_vectors


def some_vectors(count=60, width=8):
    return np.random.default_rng(0).standard_normal((count, width)).astype(np.float32)


def search(backend, count=60, concurrency=3):
    vectors, ids = open_vectors(some_vectors(count)), np.arange(count)
    if backend is None:
        backend = backends.on_device(vectors, "cosine", 1 << 30, torch.device("cpu"))
    gallery = Gallery(vectors, ids, "cosine", backend, concurrency=concurrency)
    return k_nearest(gallery, vectors, np.full(count, 5), excluded=[(ids, ids)])


def nothing(queries, count):
    return np.full((len(queries), count), -np.inf, np.float32), np.full((len(queries), count), -1)


def test_blocks_in_work_at_a_time_change_nothing(monkeypatch):
    monkeypatch.setattr(knn, "BLOCK", 7)
    with torch.inference_mode():
        concurrent, one_by_one = list(search(None)), list(search(None, concurrency=1))
    assert len(concurrent) == 9
    for (rows, positions), (expected_rows, expected) in zip(concurrent, one_by_one, strict=True):
        np.testing.assert_array_equal(rows, expected_rows)
        np.testing.assert_array_equal(positions, expected)


def test_the_next_block_is_searched_while_a_caller_uses_the_last(monkeypatch):
    monkeypatch.setattr(knn, "BLOCK", 20)
    all_started = threading.Barrier(3, timeout=30)

    def backend(queries, count):
        all_started.wait()
        return nothing(queries, count)

    assert len(list(search(backend))) == 3


def test_an_error_ends_the_search(monkeypatch):
    monkeypatch.setattr(knn, "BLOCK", 1)
    calls = []

    def backend(queries, count):
        calls.append(len(queries))
        if len(calls) == 4:
            raise RuntimeError("the device is full")
        return nothing(queries, count)

    with pytest.raises(RuntimeError, match="the device is full"):
        list(search(backend))
    assert len(calls) < 8


def test_a_search_that_its_caller_leaves_has_no_threads(monkeypatch):
    monkeypatch.setattr(knn, "BLOCK", 1)
    calls = []
    blocks = search(lambda *request: calls.append(request) or nothing(*request))
    next(blocks)
    blocks.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("knn")]
    assert len(calls) <= 3


@pytest.mark.parametrize("free", [0, 1 << 20])
def test_a_gallery_stays_on_a_device_whose_free_memory_holds_it(free, monkeypatch):
    monkeypatch.setattr(backends, "_free_memory", lambda device: free)
    data = some_vectors().astype(np.float16)
    backend = backends.on_device(Vectors(data, None, 9.0), "inner_product", 3000, torch.device("cpu"))
    queries = data.astype(np.float32)
    data[:] = 0  # seen only where the gallery is read again
    scores, _ = backend(queries, 1)
    assert (scores > 0).all() == (free > 0)
