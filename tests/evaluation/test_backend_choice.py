"""The exact k-NN backend of a CPU: torch where its float32 products outrun those of FAISS, else FAISS."""

import numpy as np
import pytest
import torch

from hgsl.evaluation import evaluate_embeddings
from hgsl.evaluation.knn import backends


@pytest.mark.parametrize("has_amx", [False, True])
def test_torch_searches_where_its_products_are_faster(has_amx, monkeypatch):
    calls = []
    for name in ("on_cpu", "on_device"):
        backend = getattr(backends, name)
        monkeypatch.setattr(backends, name, lambda *args, b=backend, n=name: calls.append(n) or b(*args))
    monkeypatch.setattr("hgsl.evaluation.task.cpu_has_amx", lambda: has_amx)
    evaluate_embeddings(np.random.default_rng(0).standard_normal((20, 4)), np.arange(20) // 2)
    assert calls == ["on_device" if has_amx else "on_cpu"]


@pytest.mark.parametrize("block", [1, 3, 256])
@pytest.mark.parametrize("max_memory", [3000, 1 << 30], ids=["in chunks", "at once"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_blocks_of_queries_and_rows_change_nothing(block, max_memory, dtype, monkeypatch):
    rng = np.random.default_rng(0)
    gallery = backends.Vectors(rng.standard_normal((50, 8)).astype(dtype), None, 10.0)
    queries = rng.standard_normal((7, 8)).astype(np.float32)
    monkeypatch.setattr(backends, "CPU_BLOCK", block)
    scores, positions = backends.on_device(gallery, "inner_product", max_memory, torch.device("cpu"))(queries, 5)
    expected = queries @ gallery.rows(slice(0, 50)).T
    np.testing.assert_array_equal(positions, np.argsort(-expected, axis=1)[:, :5])
    np.testing.assert_allclose(scores, -np.sort(-expected, axis=1)[:, :5], rtol=1e-5)
