"""Sparse gradients of the centers: steps equal to dense ones on the used rows, and no change of other rows."""

import copy
import pickle
import subprocess
import sys

import pytest
import torch
from torch import optim

from hgsl.common.errors import InputError
from hgsl.losses import HardGlobalSoftminLoss, attach_optimizer, parameter_groups, sparse_optimizer

CLASSES, DIMENSION = 200, 6


def build(**options):
    torch.manual_seed(0)
    return HardGlobalSoftminLoss(CLASSES, DIMENSION, top_k=3, decorrelation=0.0, **options)


def batch(size=4):
    return torch.randn(size, DIMENSION), torch.randint(CLASSES, (size,))


@pytest.mark.parametrize("top_k", [3, None])
@pytest.mark.parametrize("sample", [8, 10**6])
def test_sparse_gradient_equals_the_dense_one(top_k, sample):
    gradients = []
    for sparse in (False, True):
        loss_fn = build(sparse_grad=sparse, decorrelation_sample=sample)
        loss_fn.decorrelation = 0.5
        loss_fn.set_top_k(top_k)
        torch.manual_seed(1)  # of the batch and of the rows drawn
        loss_fn(*batch()).backward()
        assert loss_fn.centers.grad.is_sparse == sparse
        gradients.append(loss_fn.centers.grad.to_dense())
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("hard_set", ["all", "negatives"])
def test_only_the_true_and_the_nearest_centers_have_a_gradient(hard_set):
    loss_fn = build(sparse_grad=True, hard_set=hard_set, alpha=10)
    embeddings, labels = batch()
    loss_fn(embeddings, labels).backward()
    logits = loss_fn.get_logits(embeddings)
    if hard_set == "negatives":
        logits = logits.scatter(1, labels[:, None], -torch.inf)
    expected = {*labels.tolist(), *logits.topk(3, dim=1).indices.flatten().tolist()}
    assert set(loss_fn.centers.grad._indices()[0].tolist()) == expected


@pytest.mark.parametrize(
    ("name", "reference"), [("sgd", optim.SGD), ("adagrad", optim.Adagrad), ("sparse_adam", optim.Adam)]
)
def test_a_step_moves_touched_rows_as_dense_and_no_others(name, reference):
    loss_fn = build(sparse_grad=True, hard_set="negatives", alpha=10)
    dense = build(hard_set="negatives", alpha=10)
    dense.set_centers(loss_fn.centers)
    optimizer, other = sparse_optimizer(loss_fn, name, lr=0.1), reference([dense.centers], lr=0.1)
    before = loss_fn.centers.detach().clone()
    embeddings, labels = batch()
    for module, stepper in ((loss_fn, optimizer), (dense, other)):
        module(embeddings, labels).backward()
        stepper.step()
    touched = loss_fn.centers.grad._indices()[0].unique()
    untouched = torch.ones(CLASSES, dtype=torch.bool).index_fill_(0, touched, False)
    assert torch.equal(loss_fn.centers[untouched], before[untouched])
    assert not torch.isclose(loss_fn.centers[touched], before[touched]).all(dim=1).any()
    expected = torch.nn.functional.normalize(dense.centers[touched])
    torch.testing.assert_close(loss_fn.centers[touched], expected, atol=1e-4, rtol=1e-3)  # Adam's epsilon differs


@pytest.mark.parametrize("name", ["sgd", "adagrad", "sparse_adam"])
def test_training_converges_with_unit_centers(name):
    loss_fn = build(sparse_grad=True)
    optimizer = sparse_optimizer(loss_fn, name, lr=0.05)
    embeddings, labels = batch(20)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = loss_fn(embeddings, labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        norms = loss_fn.centers.norm(dim=1)
        torch.testing.assert_close(norms, torch.ones_like(norms))
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize(
    ("optimizer_class", "options", "reason"),
    [
        (optim.SGD, {"lr": 0.1, "momentum": 0.9}, "momentum 0.9 keeps moving rows outside the batch"),
        (optim.SGD, {"lr": 0.1, "weight_decay": 1e-4}, "weight_decay 0.0001 fails on sparse gradients"),
        (optim.Adagrad, {"lr": 0.1, "weight_decay": 1e-4}, "weight_decay 0.0001 fails on sparse gradients"),
        (optim.AdamW, {"lr": 0.1}, "AdamW refuses sparse gradients"),
        (optim.RMSprop, {"lr": 0.1}, "RMSprop refuses sparse gradients"),
    ],
)
def test_other_optimizers_are_refused_with_the_reason(optimizer_class, options, reason):
    loss_fn = build(sparse_grad=True)
    with pytest.raises(InputError, match=reason):
        attach_optimizer(loss_fn, optimizer_class([loss_fn.centers], **options))


def test_an_optimizer_without_the_centers_is_refused():
    with pytest.raises(InputError, match="does not hold"):
        attach_optimizer(build(sparse_grad=True), optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1))


def test_dense_centers_need_no_attaching():
    loss_fn = build()
    with pytest.raises(InputError, match="dense gradients"):
        attach_optimizer(loss_fn, optim.SGD([loss_fn.centers], lr=0.1))


def test_unknown_sparse_optimizer_names_the_nearest():
    with pytest.raises(InputError, match="did you mean 'sparse_adam'"):
        sparse_optimizer(build(sparse_grad=True), "sparseadam")


def test_momentum_set_later_is_refused_at_the_step():
    loss_fn = build(sparse_grad=True)
    optimizer = sparse_optimizer(loss_fn, "sgd", lr=0.1)
    optimizer.param_groups[0]["momentum"] = 0.9
    loss_fn(*batch()).backward()
    with pytest.raises(InputError, match=r"momentum 0\.9"):
        optimizer.step()


def test_an_optimizer_that_is_not_attached_is_refused_at_the_next_call():
    loss_fn = build(sparse_grad=True)
    optimizer = optim.SGD([loss_fn.centers], lr=0.1, momentum=0.9)
    loss_fn(*batch()).backward()
    optimizer.step()
    with pytest.raises(InputError, match="no optimizer is attached"):
        loss_fn(*batch())


def test_setting_and_loading_centers_normalizes_them():
    loss_fn, table = build(sparse_grad=True), 3 * torch.randn(CLASSES, DIMENSION)
    expected = torch.nn.functional.normalize(table)
    loss_fn.set_centers(table)
    torch.testing.assert_close(loss_fn.centers.detach(), expected)
    other = build(sparse_grad=True)
    other.load_state_dict({"centers": table, "alpha": torch.tensor(0.1)})
    torch.testing.assert_close(other.centers.detach(), expected)
    with torch.no_grad():
        loss_fn.centers.copy_(table)  # not through set_centers: the next call normalizes
    loss_fn(*batch())
    torch.testing.assert_close(loss_fn.centers.detach(), expected)


def test_saved_centers_load_to_the_last_bit():
    loss_fn = build(sparse_grad=True)
    optimizer = sparse_optimizer(loss_fn, lr=0.3)
    for _ in range(5):
        loss_fn(*batch()).backward()
        optimizer.step()
    other = build(sparse_grad=True)
    other.load_state_dict(loss_fn.state_dict())
    assert torch.equal(other.centers, loss_fn.centers)


def test_without_sparse_gradients_loading_keeps_norms():
    loss_fn, table = build(), 3 * torch.randn(CLASSES, DIMENSION)
    loss_fn.load_state_dict({"centers": table, "alpha": torch.tensor(0.1)})
    assert torch.equal(loss_fn.centers, table)


def test_a_copy_continues_training():
    loss_fn = build(sparse_grad=True)
    optimizer = sparse_optimizer(loss_fn)
    loss_fn(*batch()).backward()
    optimizer.step()
    twin = copy.deepcopy(loss_fn)
    twin(*batch()).backward()
    assert torch.equal(twin.centers, loss_fn.centers)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda loss_fn: pickle.loads(pickle.dumps(loss_fn))])
def test_a_copy_of_a_loss_without_an_optimizer_is_used_and_loads(copied):
    """Its tensors are new ones, whose versions do not tell that somebody changed them."""
    loss_fn = build(sparse_grad=True)
    embeddings, labels = batch()
    expected = loss_fn(embeddings, labels)
    twin = copied(loss_fn)
    torch.testing.assert_close(twin(embeddings, labels), expected)
    twin.load_state_dict({"centers": 3 * twin.centers.detach(), "alpha": twin.alpha.detach()})
    torch.testing.assert_close(twin.centers.norm(dim=1), torch.ones(CLASSES))


def test_wrong_centers_are_refused():
    for bad in (torch.randn(CLASSES, DIMENSION + 1), torch.full((CLASSES, DIMENSION), torch.nan)):
        with pytest.raises(InputError, match=r"expected finite values of shape \(200, 6\)"):
            build().set_centers(bad)
    with pytest.raises(InputError, match="centers: expected a tensor, found list"):
        build().set_centers([[1.0] * DIMENSION] * CLASSES)


def test_parameter_groups_hold_each_parameter_once():
    groups = parameter_groups(build(), centers_lr=0.5, scale_lr=1e-4)
    assert [(g["name"], g["lr"], g["weight_decay"]) for g in groups] == [("centers", 0.5, 0.0), ("scale", 1e-4, 0.0)]
    assert [g["name"] for g in parameter_groups(build(sparse_grad=True), 0.5)] == ["scale"]
    assert [g["name"] for g in parameter_groups(build(learnable_scale=False), 0.5)] == ["centers"]
    optim.AdamW(parameter_groups(build(), 0.5))


@pytest.mark.slow
def test_a_sparse_step_gives_no_warning():
    """In a process of its own, since PyTorch warns once in a process."""
    code = (
        "import torch; from hgsl.losses import HardGlobalSoftminLoss, sparse_optimizer\n"
        "loss_fn = HardGlobalSoftminLoss(20, 4, top_k=3, sparse_grad=True)\n"
        "optimizer = sparse_optimizer(loss_fn, 'adagrad', lr=0.1)\n"
        "loss_fn(torch.randn(2, 4), torch.tensor([0, 1])).backward(); optimizer.step()"
    )
    result = subprocess.run([sys.executable, "-W", "error::UserWarning", "-c", code], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
