"""Half-precision inputs, autocast and degenerate geometry: computed in float32, and finite."""

import pytest
import torch

from hgsl.losses import HardGlobalSoftminLoss

OPTIONS = [
    {"top_k": top_k, "hard_set": hard_set, "similarity": similarity, "chunk_size": chunk_size}
    for top_k in (1, 4)
    for hard_set in ("all", "negatives")
    for similarity in ("euclidean", "cosine")
    for chunk_size in (None, 3)
]


def degenerate():
    """Embeddings on their center, opposite to it, zero, tiny, huge, and far beyond what float32 can square."""
    generator = torch.Generator().manual_seed(0)
    centers = torch.nn.functional.normalize(torch.randn(7, 16, generator=generator))
    centers[5] = centers[4]  # two classes with one center
    centers[6] = 0
    embeddings = torch.stack(
        [centers[0], -centers[1], 0 * centers[2], 1e-30 * centers[3], 1e4 * centers[4], 1e30 * centers[5], centers[6]]
    )
    return embeddings, centers, torch.arange(7)


@pytest.mark.parametrize("alpha", [1e-6, 0.1, 1e6])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_degenerate_geometry_stays_finite(alpha, options):
    embeddings, centers, labels = degenerate()
    embeddings.requires_grad_()
    loss_fn = HardGlobalSoftminLoss(7, 16, alpha=alpha, **options)
    with torch.no_grad():
        loss_fn.centers.copy_(centers)
    loss = loss_fn(embeddings, labels)
    loss.backward()
    assert loss.isfinite()
    for gradient in (embeddings.grad, loss_fn.centers.grad, loss_fn.alpha.grad):
        assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_half_embeddings_are_computed_in_float32(dtype, options):
    loss_fn = HardGlobalSoftminLoss(7, 16, **options)
    embeddings = torch.randn(5, 16).to(dtype).requires_grad_()
    labels = torch.tensor([0, 1, 2, 3, 6])
    loss = loss_fn(embeddings, labels)
    loss.backward()
    assert loss.dtype == torch.float32
    assert embeddings.grad.dtype == dtype
    assert loss_fn.centers.dtype == loss_fn.centers.grad.dtype == loss_fn.alpha.dtype == torch.float32
    assert loss == loss_fn(embeddings.float(), labels)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_autocast_changes_nothing(options):
    loss_fn = HardGlobalSoftminLoss(7, 16, **options)
    embeddings, labels = torch.randn(5, 16), torch.tensor([0, 1, 2, 3, 6])
    expected, logits = loss_fn(embeddings, labels), loss_fn.get_logits(embeddings)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert loss_fn(embeddings, labels) == expected
        assert torch.equal(loss_fn.get_logits(embeddings), logits)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_half_parameters_still_compute_in_float32(options):
    loss_fn = HardGlobalSoftminLoss(7, 16, **options).to(torch.bfloat16)
    loss = loss_fn(torch.randn(5, 16, dtype=torch.bfloat16), torch.tensor([0, 1, 2, 3, 6]))
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss_fn.centers.dtype == loss_fn.centers.grad.dtype == torch.bfloat16
