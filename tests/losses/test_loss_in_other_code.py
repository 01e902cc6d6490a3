"""The loss inside pytorch-metric-learning, torch.compile and a plain loop."""

import shutil

import pytest
import torch
from torch import nn

from hgsl.common.errors import InputError
from hgsl.losses import HardGlobalSoftminLoss, sparse_optimizer

BACKENDS = ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)]


def clusters(classes=6, each=20, dimension=8):
    generator = torch.Generator().manual_seed(0)
    middles = 2 * torch.randn(classes, dimension, generator=generator)
    labels = torch.arange(classes).repeat_interleave(each)
    return middles[labels] + torch.randn(len(labels), dimension, generator=generator), labels


@pytest.mark.parametrize("sparse_grad", [False, True])
def test_trains_in_the_trainer_of_pytorch_metric_learning(sparse_grad):
    miners = pytest.importorskip("pytorch_metric_learning.miners")
    trainers = pytest.importorskip("pytorch_metric_learning.trainers")
    torch.manual_seed(0)
    points, labels = clusters()
    trunk = nn.Linear(8, 4)
    loss_fn = HardGlobalSoftminLoss(6, 4, top_k=3, alpha=1.0, sparse_grad=sparse_grad)
    centers = sparse_optimizer(loss_fn, lr=0.2) if sparse_grad else torch.optim.SGD(loss_fn.parameters(), lr=0.2)
    before = loss_fn(trunk(points), labels).item()
    trainer = trainers.MetricLossOnly(
        models={"trunk": trunk},
        optimizers={"trunk_optimizer": torch.optim.SGD(trunk.parameters(), lr=0.2), "metric_loss_optimizer": centers},
        batch_size=24,
        loss_funcs={"metric_loss": loss_fn},
        mining_funcs={"tuple_miner": miners.MultiSimilarityMiner()},
        dataset=torch.utils.data.TensorDataset(points, labels),
        dataloader_num_workers=0,
        data_device=torch.device("cpu"),
    )
    trainer.train(num_epochs=10)
    assert loss_fn(trunk(points), labels).item() < 0.7 * before
    predicted = loss_fn.get_logits(trunk(points)).argmax(dim=1)
    assert (predicted == labels).float().mean() > 0.9


def test_tuples_weigh_as_in_pytorch_metric_learning():
    utils = pytest.importorskip("pytorch_metric_learning.utils.loss_and_miner_utils")
    points, labels = clusters(each=2)
    loss_fn = HardGlobalSoftminLoss(6, 8, decorrelation=0.0)
    anchors, positives, negatives = torch.tensor([0, 0, 3]), torch.tensor([1, 1, 2]), torch.tensor([5, 6, 0])
    weights = utils.convert_to_weights((anchors, positives, negatives), labels, torch.float32)
    each = torch.stack([loss_fn(points[i : i + 1], labels[i : i + 1]) for i in range(len(points))])
    actual = loss_fn(points, labels, (anchors, positives, negatives))
    torch.testing.assert_close(actual, (weights * each).mean())
    empty = torch.tensor([], dtype=torch.int64)
    torch.testing.assert_close(loss_fn(points, labels, (empty, empty, empty)), each.mean())
    with pytest.raises(InputError, match="names embedding 99, but the batch has 12"):
        loss_fn(points, labels, (anchors, positives, torch.tensor([99])))


def test_references_are_refused():
    points, labels = clusters()
    with pytest.raises(InputError, match="ref_emb and ref_labels are not supported"):
        HardGlobalSoftminLoss(6, 8)(points, labels, ref_emb=points, ref_labels=labels)


def test_logits_are_those_of_the_loss():
    points, labels = clusters()
    loss_fn = HardGlobalSoftminLoss(6, 8, decorrelation=0.0)
    logits = loss_fn.get_logits(points)
    assert logits.shape == (120, 6)
    torch.testing.assert_close(nn.functional.cross_entropy(logits, labels), loss_fn(points, labels))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, marks=pytest.mark.slow),
        {"top_k": 3},
        pytest.param({"top_k": 3, "chunk_size": 16, "margin": 0.1}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_compiles_in_one_graph(backend, options):
    if backend == "inductor" and not (shutil.which("g++") or shutil.which("clang++")):
        pytest.skip("inductor needs a C++ compiler")
    loss_fn = HardGlobalSoftminLoss(40, 8, **options)
    compiled = torch.compile(loss_fn, backend=backend, fullgraph=True)
    embeddings, labels = torch.randn(6, 8), torch.randint(40, (6,))
    results = []
    for function in (loss_fn, compiled):
        loss_fn.zero_grad()
        leaf = embeddings.clone().requires_grad_()
        loss = function(leaf, labels)
        loss.backward()
        results.append([loss.detach(), leaf.grad, loss_fn.centers.grad, loss_fn.alpha.grad])
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-4)  # other operations, at a scale of 100


@pytest.mark.slow
def test_sparse_gradients_survive_compilation():
    loss_fn = HardGlobalSoftminLoss(200, 8, top_k=3, sparse_grad=True)
    optimizer = sparse_optimizer(loss_fn)
    compiled = torch.compile(loss_fn, backend="aot_eager")
    for _ in range(3):
        optimizer.zero_grad()
        compiled(torch.randn(6, 8), torch.randint(200, (6,))).backward()
        optimizer.step()
    torch.testing.assert_close(loss_fn.centers.norm(dim=1), torch.ones(200))
