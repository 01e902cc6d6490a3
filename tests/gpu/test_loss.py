"""Loss and evaluation on the device against float64 and against the CPU."""

import importlib.util
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from hgsl import HardGlobalSoftminLoss, evaluate_embeddings
from hgsl.common.errors import InputError
from hgsl.common.precision import SWITCHES, float32_products
from hgsl.evaluation import embed
from hgsl.evaluation.knn import backends, knn
from hgsl.losses import deferred_checks, sparse_optimizer
from hgsl.losses.scoring.search import fastest_method, nearest_centers
from tests.helpers import clusters

OPTIONS = {
    "all": {},
    "nearest": {"top_k": 3},
    "negatives": {"top_k": 3, "hard_set": "negatives", "margin": 0.1},
    "both sides": {"top_k": 3, "both_sides": 1.0},
    "cosine": {"similarity": "cosine"},
    "searched": {"top_k": 2, "chunk_size": 64},
    "sparse": {"top_k": 2, "sparse_grad": True},
}


@pytest.fixture(autouse=True)
def _ieee() -> Iterator[None]:
    with float32_products():
        yield


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_loss_and_gradients_are_those_of_float64(device: torch.device, options: dict) -> None:
    torch.manual_seed(0)
    loss = HardGlobalSoftminLoss(200, 32, alpha=0.4, decorrelation=0.0, **options)
    x, labels = torch.randn(16, 32), torch.randint(200, (16,))
    results = []
    for where, dtype in ((torch.device("cpu"), torch.float64), (device, torch.float32)):
        copy = HardGlobalSoftminLoss(200, 32, alpha=0.4, decorrelation=0.0, **options).to(where, dtype)
        copy.load_state_dict(loss.state_dict())
        embeddings = x.to(where, dtype).requires_grad_()
        value = copy(embeddings, labels.to(where))
        value.backward()
        centers = copy.centers.grad
        assert centers is not None
        results.append(
            [t.detach().to("cpu", torch.float64) for t in (value, embeddings.grad, centers.to_dense(), copy.alpha.grad)]
        )
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_captured_call_gives_the_numbers_of_an_ordinary_one(device: torch.device, options: dict) -> None:
    torch.manual_seed(0)
    captured = HardGlobalSoftminLoss(300, 32, decorrelation_sample=16, **options).to(device)
    plain = HardGlobalSoftminLoss(300, 32, decorrelation_sample=16, **options, cuda_graphs=False).to(device)
    plain.load_state_dict(captured.state_dict())
    x, labels = torch.randn(3, 16, 32, device=device), torch.randint(300, (3, 16), device=device)
    results = []
    for loss in (captured, plain):
        torch.manual_seed(1)
        values = []
        leaf = x.clone().requires_grad_()
        for i in range(3):
            loss.zero_grad()
            value = loss(leaf[i], labels[i])
            (2 * value).backward()
            values += [value, loss.centers.grad.to_dense(), loss.alpha.grad]
        results.append([*values, leaf.grad])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("batch", "count", "dimensions", "k"), [(3, 4096, 7, 1), (140, 5001, 70, 11), (64, 70000, 512, 64)]
)
def test_the_fastest_search_finds_the_nearest(
    device: torch.device, batch: int, count: int, dimensions: int, k: int
) -> None:
    torch.manual_seed(0)
    x = torch.nn.functional.normalize(torch.randn(batch, dimensions), dim=1)
    centers = torch.randn(count, dimensions) * torch.rand(count, 1)
    centers[: count // 2] = centers[count // 2 : 2 * (count // 2)]  # every center twice
    centers[7] = 0
    norms = centers.norm(dim=1)
    cosines = x.double() @ centers.double().T / norms.where(norms > 0, 1).double()
    rows, extremes = nearest_centers(x.to(device), centers.to(device), k, 8192)
    expected = cosines.topk(k, dim=1).values
    torch.testing.assert_close(cosines.gather(1, rows.cpu()), expected, rtol=0, atol=1e-5)
    assert all(len(set(row)) == k for row in rows.tolist())
    torch.testing.assert_close(extremes.cpu(), torch.stack(norms.aminmax()))


def test_triton_runs_on_a_gpu_that_has_it(device: torch.device, needs_cuda: None) -> None:
    if importlib.util.find_spec("triton") is None or torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("no Triton, or a GPU before Ampere")
    x, centers = torch.ones(2, 16, device=device), torch.ones(5000, 16, device=device)
    assert fastest_method(x, centers, 10) == "groups"


def test_a_step_waits_for_the_device_when_it_is_asked_to(device: torch.device, needs_cuda: None) -> None:
    loss = HardGlobalSoftminLoss(200, 32, top_k=3, alpha=0.4).to(device)
    x, labels = torch.randn(16, 32, device=device, requires_grad=True), torch.randint(200, (16,), device=device)
    with deferred_checks() as checks:
        loss(x, labels).backward()  # allocates what the checks compare with
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            loss(x, labels).backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        checks.raise_errors()
        loss(x * torch.nan, labels)
        with pytest.raises(InputError, match="embeddings hold NaN"):
            checks.raise_errors()


def test_sparse_centers_learn_on_the_device(device: torch.device) -> None:
    torch.manual_seed(0)
    loss = HardGlobalSoftminLoss(1000, 16, top_k=3, sparse_grad=True).to(device)
    optimizer = sparse_optimizer(loss, "sgd", lr=0.5)
    x, labels = torch.randn(32, 16, device=device), torch.arange(32, device=device)
    first = float(loss(x, labels).detach())
    for _ in range(20):
        loss.zero_grad()
        loss(x, labels).backward()
        optimizer.step()
    assert float(loss(x, labels).detach()) < first
    torch.testing.assert_close(loss.centers.norm(dim=1), torch.ones(1000, device=device))


def test_duplicates_are_ranked_as_on_the_cpu(device: torch.device) -> None:
    vectors, labels = clusters(count=400, classes=20, width=16)
    vectors[200:] = vectors[:200]  # every image twice, half of them under another label
    labels = np.concatenate([labels[:200], (labels[:200] + np.arange(200) % 2) % 20])
    expected = evaluate_embeddings(vectors, labels, (1, 4))
    assert evaluate_embeddings(vectors, labels, (1, 4), device=device).to_dict() == expected.to_dict()


def test_blocks_are_searched_on_the_device_while_the_host_orders_others(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(knn, "BLOCK", 32)
    monkeypatch.setattr(backends, "concurrency", lambda device: backends.CONCURRENCY)
    vectors, labels = clusters(count=1000, classes=100, width=64)
    expected = evaluate_embeddings(vectors, labels, (1, 4)).per_query
    for free in (0, 1 << 30):  # with and without the gallery on the device
        monkeypatch.setattr(backends, "_free_memory", lambda device, free=free: free)
        per_query = evaluate_embeddings(vectors, labels, (1, 4), device=device, max_memory=400_000).per_query
        for name, values in expected.items():
            np.testing.assert_array_equal(per_query[name], values, err_msg=name)


def test_embedding_is_ieee_float32_whatever_is_set(device: torch.device) -> None:
    reduced = []

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Conv2d(3, 8, 3)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            switches = [getattr(getattr(torch.backends, a), b).fp32_precision for a, b in SWITCHES]
            reduced.append({"tf32", "bf16"} & set(switches))
            return self.layer(images).mean((2, 3))

    torch.manual_seed(0)
    network = Network()
    images = torch.randn(8, 3, 16, 16)
    data = TensorDataset(images, torch.arange(8), torch.arange(8))
    exact = network.double()(images.double()).detach().numpy()
    with float32_products(tf32=True):
        vectors = embed(network.float(), data, device=device, progress=False).embeddings
    assert not any(reduced[1:])
    assert np.abs(vectors - exact).max() < 1e-5  # TensorFloat-32 would be at 1e-3
