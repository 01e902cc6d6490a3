"""The loss against a slow, obvious version of its formula; the dense and the gathered computation agree."""

import itertools
import math

import pytest
import torch

from hgsl.common.errors import InputError
from hgsl.common.precision import float32_products
from hgsl.losses.functional import class_logits, hard_global_softmin_loss
from hgsl.losses.scoring.similarity import cosines_and_squares, unit

SETTINGS = list(itertools.product(("all", "negatives"), ("euclidean", "cosine"), (0.0, 0.2)))


def oracle(embeddings, centers, labels, alpha, top_k, hard_set, similarity="euclidean", margin=0.0):
    """The formula, one number at a time."""
    losses = []
    for x, y in zip(embeddings.tolist(), labels.tolist(), strict=True):
        x = [value / math.hypot(*x) for value in x]
        z = []
        for j, w in enumerate(centers.tolist()):
            w = [value / math.hypot(*w) for value in w]
            if similarity == "cosine":
                closeness = sum(a * b for a, b in zip(x, w, strict=True))
            else:
                closeness = 1 - math.sqrt(math.dist(x, w) ** 2 + 1e-6)
            z.append(10 / alpha * (closeness - margin * (j == y)))
        nearest = sorted(z if hard_set == "all" else z[:y] + z[y + 1 :])[-top_k:]
        hard = nearest if hard_set == "all" else [z[y], *nearest]
        top = max(hard)
        losses.append(top + math.log(sum(math.exp(value - top) for value in hard)) - z[y])
    return sum(losses) / len(losses)


def batch(seed=0, size=9, classes=23, dimension=5, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(size, dimension, generator=generator, dtype=dtype)
    centers = torch.randn(classes, dimension, generator=generator, dtype=dtype)
    return embeddings, centers, torch.randint(classes, (size,), generator=generator)


def loss_and_gradients(embeddings, centers, labels, alpha, *settings, **options):
    leaves = [value.clone().requires_grad_() for value in (embeddings, centers, torch.tensor(alpha).to(embeddings))]
    loss = hard_global_softmin_loss(leaves[0], leaves[1], labels, leaves[2], *settings, **options)
    loss.backward()
    return [loss.detach(), *(leaf.grad for leaf in leaves)]


def relative_error(actual, expected):
    return max(
        float((a - b).abs().max() / b.abs().max().clamp_min(1e-3)) for a, b in zip(actual, expected, strict=True)
    )


@pytest.mark.parametrize(("hard_set", "similarity", "margin"), SETTINGS)
@pytest.mark.parametrize("chunk_size", [None, 4])
@pytest.mark.parametrize("top_k", [1, 3, 22])
def test_equals_the_formula(hard_set, similarity, margin, chunk_size, top_k):
    embeddings, centers, labels = batch()
    expected = oracle(embeddings, centers, labels, 0.7, top_k, hard_set, similarity, margin)
    actual = hard_global_softmin_loss(
        embeddings, centers, labels, 0.7, top_k, hard_set, margin=margin, similarity=similarity, chunk_size=chunk_size
    )
    assert actual.item() == pytest.approx(expected, abs=1e-11)


@pytest.mark.parametrize(("hard_set", "similarity", "margin"), SETTINGS)
@pytest.mark.parametrize("chunk_size", [None, 3])
def test_gradients_are_those_of_finite_differences(hard_set, similarity, margin, chunk_size):
    embeddings, centers, labels = batch(size=4, classes=8)
    alpha = torch.tensor(2.0, dtype=torch.float64)

    def loss(e, c, a):
        options = {"margin": margin, "similarity": similarity, "chunk_size": chunk_size}
        return hard_global_softmin_loss(e, c, labels, a, 3, hard_set, **options)

    inputs = [value.requires_grad_() for value in (embeddings, centers, alpha)]
    assert torch.autograd.gradcheck(loss, inputs)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
@pytest.mark.parametrize(("hard_set", "similarity", "margin"), SETTINGS)
@pytest.mark.parametrize("chunk_size", [1, 7, 100, 1000])
def test_chunked_equals_dense(dtype, tolerance, hard_set, similarity, margin, chunk_size):
    embeddings, centers, labels = batch(size=16, classes=300, dimension=32, dtype=dtype)
    for top_k in (1, 10, 299):
        settings = (embeddings, centers, labels, 0.5, top_k, hard_set)
        options = {"margin": margin, "similarity": similarity}
        dense = loss_and_gradients(*settings, **options, chunk_size=None if top_k == 299 else 300)
        chunked = loss_and_gradients(*settings, **options, chunk_size=chunk_size)
        assert relative_error(chunked, dense) < tolerance


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_dense_and_gathered_agree_without_a_chunk_size(dtype, tolerance, monkeypatch):
    embeddings, centers, labels = batch(size=16, classes=400, dimension=32, dtype=dtype)
    results = []
    for share in (0.0, 1.0):  # always dense, then always gathered
        monkeypatch.setattr("hgsl.losses.hard_set.GATHER_BELOW", share)
        results.append(loss_and_gradients(embeddings, centers, labels, 0.1, 10, "negatives"))
    assert relative_error(*results) < tolerance


def test_scale_of_the_inputs_does_not_matter():
    embeddings, centers, labels = batch()
    once = hard_global_softmin_loss(embeddings, centers, labels, 1.0, 3)
    again = hard_global_softmin_loss(embeddings * 7, centers * 0.1, labels, 1.0, 3)
    torch.testing.assert_close(once, again)


def test_one_nearest_of_all_is_zero_for_a_correctly_ranked_image():
    centers = torch.eye(4, 6)
    assert hard_global_softmin_loss(centers[:3] * 5, centers, torch.arange(3), 0.1, 1) == 0


def test_true_class_is_always_in_the_hard_set_of_negatives():
    embeddings = torch.tensor([[1.0, 0.0]])
    centers = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    far = torch.tensor([2])  # z: the true class is the farthest
    z = class_logits(embeddings, centers, 10.0)[0]
    hard = hard_global_softmin_loss(embeddings, centers, far, 10.0, 1, "all")
    joined = hard_global_softmin_loss(embeddings, centers, far, 10.0, 1, "negatives")
    torch.testing.assert_close(hard, z[0] - z[2])
    torch.testing.assert_close(joined, torch.stack([z[0], z[2]]).logsumexp(0) - z[2])


def test_margin_decides_which_classes_are_in_the_hard_set():
    embeddings, centers = torch.tensor([[1.0, 0.2]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    label = torch.tensor([0])
    assert hard_global_softmin_loss(embeddings, centers, label, 0.1, 1) == 0
    assert hard_global_softmin_loss(embeddings, centers, label, 0.1, 1, margin=1.5) > 0


@pytest.mark.parametrize("shape", [(1,), (1, 1)])
def test_alpha_may_be_a_tensor_of_one_number_of_any_shape(shape):
    embeddings, centers, labels = batch()
    alpha = torch.full(shape, 0.5, dtype=torch.float64, requires_grad=True)
    loss = hard_global_softmin_loss(embeddings, centers, labels, alpha, 3, both_sides=1.0)
    torch.testing.assert_close(loss, hard_global_softmin_loss(embeddings, centers, labels, 0.5, 3, both_sides=1.0))
    loss.backward()
    assert alpha.grad.shape == shape


def test_logits_refuse_an_unknown_similarity():
    embeddings, centers, _ = batch()
    with pytest.raises(InputError, match="unknown similarity 'cos'"):
        class_logits(embeddings, centers, similarity="cos")


def test_weights_multiply_each_loss_before_the_mean():
    embeddings, centers, labels = batch(size=3)
    singles = [hard_global_softmin_loss(embeddings[i : i + 1], centers, labels[i : i + 1], 1.0, 3) for i in range(3)]
    weights = torch.tensor([1.0, 0.0, 0.5])
    actual = hard_global_softmin_loss(embeddings, centers, labels, 1.0, 3, weights=weights)
    torch.testing.assert_close(actual, (singles[0] + 0.5 * singles[2]) / 3)


@pytest.mark.parametrize("gap", [1e-1, 1e-2, 1e-3])
@pytest.mark.parametrize("chunk_size", [None, 2])
def test_near_points_keep_their_digits_in_float32(gap, chunk_size):
    # 2 - 2 x.w in float32 would be off by 1e-4 to 1e-2 here, at s = 100
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.nn.functional.normalize(torch.randn(32, 512, generator=generator))
    centers = torch.nn.functional.normalize(embeddings + gap * torch.randn(32, 512, generator=generator) / 512**0.5)
    labels = torch.arange(32).roll(1)
    exact = hard_global_softmin_loss(embeddings.double(), centers.double(), labels, 0.1, 1)
    actual = hard_global_softmin_loss(embeddings, centers, labels, 0.1, 1, chunk_size=chunk_size)
    assert abs(actual.item() - exact.item()) < 2e-5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": torch.tensor([0, 23, -1])}, "labels -1, 23 are out of range: there are 23 classes, 0 to 22"),
        ({"labels": torch.tensor([0.0, 1.0, 2.0])}, "expected int64"),
        ({"labels": torch.tensor([0, 1])}, r"expected int64 of shape \(3,\)"),
        ({"embeddings": torch.zeros(3, 4)}, r"expected floating point \(batch, 5\)"),
        ({"embeddings": torch.zeros(3, 5, dtype=torch.int64)}, "expected floating point"),
        ({"embeddings": torch.zeros(0, 5), "labels": torch.zeros(0, dtype=torch.int64)}, "the batch is empty"),
        (
            {"embeddings": torch.full((3, 5), math.nan).index_fill(0, torch.tensor([0, 2]), 1)},
            "NaN or infinity in row 1",
        ),
        ({"embeddings": torch.full((3, 5), math.inf)}, "row 0, 1, 2"),
        ({"top_k": 0}, "top_k is 0: with 23 classes and hard_set 'all' use 1 to 23"),
        ({"top_k": 24}, "use 1 to 23"),
        ({"top_k": 23, "hard_set": "negatives"}, "use 1 to 22"),
        ({"hard_set": "negative"}, "did you mean 'negatives'"),
        ({"alpha": 0.0}, "alpha is 0"),
        ({"alpha": math.nan}, "alpha is nan"),
        ({"alpha": torch.tensor(-1.0)}, "alpha is -1"),
        ({"alpha": 1e9}, r"it must lie in \[1e-06, 1e\+06\]"),
        ({"margin": -0.1}, "margin is -0.1"),
        ({"similarity": "cosin"}, "did you mean 'cosine'"),
        ({"chunk_size": 0}, "chunk_size is 0"),
    ],
)
def test_bad_input_is_named(change, message):
    embeddings, centers, labels = batch(size=3, dtype=torch.float32)
    arguments = {"embeddings": embeddings, "centers": centers, "labels": labels, "alpha": 0.1} | change
    with pytest.raises(InputError, match=message):
        hard_global_softmin_loss(**arguments)


@pytest.mark.parametrize(
    "change",
    [{"NEAR": 9.0, "MANY": 1.0, "PAIRS": 7}, {"MANY": 0.0, "NEAR": 9.0}, {"HOST_DEVICES": (), "NEAREST": 23}],
    ids=["differences of all pairs", "many near pairs", "of the nearest"],
)
def test_distances_of_near_points_are_exact_by_each_way(change, monkeypatch):
    noise, centers, _ = batch(size=23, dimension=64, dtype=torch.float32)
    x, centers[7] = unit(centers + 1e-3 * noise), 0
    for name, value in change.items():
        monkeypatch.setattr(f"hgsl.losses.scoring.similarity.{name}", value)
    _, squares = cosines_and_squares(x, centers, centers.norm(dim=1))
    exact = torch.cdist(x.double(), unit(centers.double()))
    assert exact[0, 0] < 2e-3  # 2 - 2 x.w in float32 would be off by a tenth
    torch.testing.assert_close(squares.sqrt(), exact.float(), rtol=1e-4, atol=0)


@pytest.mark.parametrize("top_k", [1, 3])
@pytest.mark.parametrize("hard_set", ["all", "negatives"])
def test_a_gpu_scores_every_pair_of_a_moderate_number_of_classes(top_k, hard_set, monkeypatch):
    embeddings, centers, labels = batch(size=16, classes=400, dimension=32)
    gathered = loss_and_gradients(embeddings, centers, labels, 0.5, top_k, hard_set)
    monkeypatch.setattr("hgsl.losses.functional.DENSE_UP_TO", {"cpu": 400})
    monkeypatch.setattr("hgsl.losses.hard_set.nearest_centers", None)  # not called
    assert relative_error(loss_and_gradients(embeddings, centers, labels, 0.5, top_k, hard_set), gathered) < 1e-9


@pytest.mark.parametrize("chunk_size", [None, 2])
@pytest.mark.parametrize("similarity", ["euclidean", "cosine"])
def test_lower_precision_of_products_does_not_reach_the_loss(chunk_size, similarity):
    embeddings, centers, labels = batch(size=16, classes=40, dimension=64, dtype=torch.float32)
    arguments = (embeddings, centers, labels, 0.5, 3)
    options = {"similarity": similarity, "chunk_size": chunk_size, "both_sides": 1.0, "decorrelation": 0.5}
    expected = loss_and_gradients(*arguments, **options)
    with float32_products():  # sets the precision again that was set before
        torch.backends.mkldnn.matmul.fp32_precision = "bf16"
        for actual, value in zip(loss_and_gradients(*arguments, **options), expected, strict=True):
            assert torch.equal(actual, value)
        assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"
