"""The chunked search returns the top k of the full product, and never holds that product."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hgsl.losses import HardGlobalSoftminLoss
from hgsl.losses.scoring.search import nearest_centers
from hgsl.losses.scoring.similarity import unit


class LargestTensor(TorchDispatchMode):
    """Records the largest number of elements of any tensor that an operation made, views of ``known`` excluded."""

    def __init__(self, known):
        super().__init__()
        self.known, self.size = known.untyped_storage().data_ptr(), 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor) and not leaf.is_sparse]
        made = [leaf.numel() for leaf in made if leaf.untyped_storage().data_ptr() != self.known]
        self.size = max(self.size, *made, 0)
        return result


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**32),
    count=st.integers(1, 60),
    k=st.integers(1, 60),
    chunk_size=st.integers(1, 70),
)
def test_search_equals_the_full_product(seed, count, k, chunk_size):
    generator = torch.Generator().manual_seed(seed)
    x = unit(torch.randn(5, 8, generator=generator, dtype=torch.float64))
    centers = torch.randn(count, 8, generator=generator, dtype=torch.float64)
    k = min(k, count)
    rows, norms = nearest_centers(x, centers, k, chunk_size, "exact")
    assert torch.equal(rows, (x @ unit(centers).T).topk(k, dim=1).indices)
    torch.testing.assert_close(norms, torch.stack(centers.norm(dim=1).aminmax()))


def test_search_is_a_well_formed_operator():
    x, centers = unit(torch.randn(5, 8)), torch.randn(20, 8)
    torch.library.opcheck(nearest_centers, (x, centers, 3, 7))


def test_equal_centers_are_each_found_once():
    centers = torch.eye(3, 4).repeat(4, 1)  # each of three centers four times
    rows, _ = nearest_centers(torch.eye(3, 4), centers, 4, 5, "exact")
    assert [sorted(row) for row in rows.tolist()] == [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11]]


@pytest.mark.parametrize("hard_set", ["all", "negatives"])
def test_no_matrix_of_batch_by_classes_is_held(hard_set):
    batch_size, classes, dimension, k, chunk = 64, 5000, 8, 4, 256
    options = {"top_k": k, "hard_set": hard_set, "chunk_size": chunk, "sparse_grad": True, "decorrelation_sample": 16}
    loss_fn = HardGlobalSoftminLoss(classes, dimension, **options)
    embeddings = torch.randn(batch_size, dimension, requires_grad=True)
    labels = torch.randint(classes, (batch_size,))
    with LargestTensor(loss_fn.centers) as largest:
        loss_fn(embeddings, labels).backward()
    assert largest.size <= batch_size * max(chunk, (k + 1) * dimension)
    assert largest.size < batch_size * classes / 10
