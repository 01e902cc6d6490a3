"""The coarse search in bfloat16 finds what the exact search finds, or says that it is not certain."""

import math

import pytest
import torch

from hgsl.losses import HardGlobalSoftminLoss, sparse_optimizer
from hgsl.losses.scoring import coarse
from hgsl.losses.scoring.coarse import coarse_search_pays, search_coarsely
from hgsl.losses.scoring.search import nearest_centers
from hgsl.losses.scoring.similarity import unit

D = 64


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(coarse, "PIECE", 48)
    monkeypatch.setattr(coarse, "BLOCK", 256)
    monkeypatch.setattr(coarse, "PROBE", 1024)
    monkeypatch.setattr(coarse, "SCORES", 512 * 8)
    monkeypatch.setattr(coarse, "REFINED", 5)


def table(count, seed=0, spread=1.0):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(count, D, generator=generator)
    return unit(rows[:1] + spread * rows if spread < 1 else rows)


def exact_rows(x, centers, k):
    return (x.double() @ centers.double().T).topk(k, dim=1).indices


@pytest.mark.parametrize("count", [1024, 1025, 1030, 1536, 4099])
@pytest.mark.parametrize("k", [1, 2, 11, 20])
def test_random_centers_are_found_with_certainty(count, k):
    x, centers = table(8, seed=1), table(count)
    rows, certain, norms = search_coarsely(x, centers, k)
    assert certain.float().mean() > 0.5
    assert torch.equal(rows[certain], exact_rows(x, centers, k)[certain])
    torch.testing.assert_close(norms, centers.norm(dim=1))


@pytest.mark.parametrize("spread", [1.0, 0.3, 0.1, 1e-2])
@pytest.mark.parametrize("k", [1, 11])
def test_the_search_returns_the_same_rows_however_crowded_the_centers_are(spread, k):
    x, centers = table(8, seed=1, spread=spread), table(3000, spread=spread)
    for row in range(8):  # near neighbors beside the crowd, in another chunk each
        centers[300 * row + 100 : 300 * row + 100 + k] = unit(x[row] + 0.3 * centers[:k])
    rows, norms = nearest_centers(x, centers, k, 8192, "coarse")
    cosines = x.double() @ centers.double().T
    torch.testing.assert_close(cosines.gather(1, rows), cosines.topk(k, dim=1).values, rtol=0, atol=1e-6)
    torch.testing.assert_close(norms, torch.stack(centers.norm(dim=1).aminmax()))


def test_equal_centers_are_not_certain_and_each_found_once():
    x, centers = table(8, seed=1), table(50).repeat(60, 1)
    result = search_coarsely(x, centers, 10)
    assert result is None or not result[1].any()
    rows, _ = nearest_centers(x, centers, 60, 8192, "coarse")
    assert all(len(set(row)) == 60 and len({r % 50 for r in row}) == 1 for row in rows.tolist())


def test_the_error_of_a_coarse_score_is_within_its_bound():
    x, centers = table(200, seed=1), table(2000)
    centers[:200] = x  # the largest scores
    scores = (x.bfloat16() @ centers.bfloat16().T).double()
    error = (scores - x.double() @ centers.double().T).abs()
    bound = coarse._error_bound(x) + coarse.RELATIVE * scores.abs()
    assert (error <= bound).all()
    assert error.max() > 0.2 * bound.mean()  # and the bound is not far too large


@pytest.mark.parametrize("wrong", [1e-3, 2.0, math.nan])
@pytest.mark.parametrize("row", [3, 2999])
def test_centers_of_another_norm_are_searched_exactly(wrong, row):
    x, centers = table(8, seed=1), table(3000)
    centers[row] = wrong * x[0]
    assert search_coarsely(x, centers, 5) is None
    if not math.isnan(wrong):
        rows, norms = nearest_centers(x, centers, 5, 8192, "coarse")
        assert torch.equal(rows, exact_rows(x, unit(centers), 5))
        assert wrong in norms.tolist() or torch.isclose(norms, torch.tensor(wrong)).any()


def test_a_faulty_product_is_not_trusted(monkeypatch):
    x, centers = table(8, seed=1), table(3000)
    score_chunk = coarse._score_chunk

    def faulty(*arguments):
        maxima = score_chunk(*arguments)
        arguments[2].mul_(1.05)
        return maxima.mul_(1.05)

    monkeypatch.setattr(coarse, "_score_chunk", faulty)
    assert not search_coarsely(x, centers, 5)[1].any()


def test_an_embedding_of_nan_is_not_certain():
    x, centers = table(8, seed=1), table(3000)
    x[2] = math.nan
    _, certain, _ = search_coarsely(x, centers, 5)
    assert not certain[2]
    assert certain.sum() >= 4


def test_it_is_chosen_where_the_processor_has_matrix_units_and_the_product_is_large(monkeypatch):
    x, centers = torch.empty(64, D), torch.empty(1, D).expand(32768, D)
    for has_amx in (False, True):
        monkeypatch.setattr(coarse, "cpu_has_amx", lambda answer=has_amx: answer)
        monkeypatch.setattr(coarse, "PROBE", 8192)
        assert coarse_search_pays(x, centers, 11) is has_amx
        assert not coarse_search_pays(x[:63], centers, 11)
        assert not coarse_search_pays(x, centers[1:], 11)
        assert not coarse_search_pays(x.double(), centers, 11)
        assert not coarse_search_pays(x, centers, 129)


def test_a_step_is_the_same_with_and_without_it(monkeypatch):
    embeddings, labels = torch.randn(8, D), torch.arange(8)
    results = []
    for is_coarse in (False, True):
        monkeypatch.setattr("hgsl.losses.scoring.search.coarse_search_pays", lambda *_, answer=is_coarse: answer)
        torch.manual_seed(0)
        loss_fn = HardGlobalSoftminLoss(3000, D, top_k=10, sparse_grad=True)
        optimizer = sparse_optimizer(loss_fn, lr=0.1)
        leaf = embeddings.clone().requires_grad_()
        for _ in range(3):
            optimizer.zero_grad()
            loss = loss_fn(leaf, labels)
            loss.backward()
            optimizer.step()
        results.append([loss.detach(), leaf.grad, loss_fn.centers.detach()])
    for first, second in zip(*results, strict=True):
        assert torch.equal(first, second)
