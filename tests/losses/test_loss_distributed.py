"""Several processes against one: replicated centers under DistributedDataParallel, and sharded centers."""

import itertools

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from hgsl.common.errors import InputError
from hgsl.losses import HardGlobalSoftminLoss, ShardedHardGlobalSoftminLoss, sparse_optimizer
from tests.helpers import spawn

DIMENSION = 6
CASES = [
    {"hard_set": hard_set, "top_k": top_k, "num_classes": classes, "similarity": similarity, **more}
    for (hard_set, top_k, classes), similarity, more in itertools.product(
        [("all", 1, 40), ("negatives", 3, 40), ("all", None, 7), ("all", 3, 4), ("negatives", None, 7)],
        ["euclidean", "cosine"],
        [{}, {"chunk_size": 3, "margin": 0.1}, {"sparse_grad": True, "decorrelation_sample": 3}],
    )
]


def joint_batch(classes, sizes, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    embeddings = torch.randn(sum(sizes), DIMENSION, generator=generator, dtype=dtype)
    return embeddings, torch.randint(classes, (sum(sizes),), generator=generator)


def one_process(num_classes, dtype, **options):
    torch.manual_seed(0)
    loss_fn = HardGlobalSoftminLoss(num_classes, DIMENSION, alpha=1.0, decorrelation=0.5, **options).to(dtype)
    loss_fn.renormalize()  # to the last bit of float64, as sharded centers are when they are loaded
    return loss_fn


def check_sharded(rank, world):
    sizes = [3 + r for r in range(world)]  # an uneven batch
    mine = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
    # In float32, the gradients of one process themselves differ from those in float64 by up to 1e-6.
    runs = [(torch.float64, 1e-10, case) for case in CASES] + [(torch.float32, 2e-6, case) for case in CASES[::3]]
    for dtype, tolerance, case in runs:
        reference = one_process(dtype=dtype, **case)
        embeddings, labels = joint_batch(case["num_classes"], sizes, dtype)
        options = {name: value for name, value in case.items() if name != "num_classes"}
        sharded = ShardedHardGlobalSoftminLoss(
            case["num_classes"], DIMENSION, alpha=1.0, decorrelation=0.5, **options
        ).to(dtype)
        sharded.load_state_dict(reference.state_dict())
        whole, part = embeddings.clone().requires_grad_(), embeddings[mine].clone().requires_grad_()

        torch.manual_seed(2)  # of the rows drawn for the regularizer
        expected = reference(whole, labels)
        torch.manual_seed(2 + rank)
        actual = sharded(part, labels[mine])
        (3 * expected).backward()
        (3 * actual).backward()

        pairs = {
            "loss": (actual, expected),
            "embeddings": (part.grad, world * whole.grad[mine]),
            "alpha": (sharded.alpha.grad, reference.alpha.grad),
        }
        if len(sharded.centers):
            block = slice(sharded.first_class, sharded.first_class + len(sharded.centers))
            pairs["centers"] = (sharded.centers.grad.to_dense(), reference.centers.grad.to_dense()[block])
            assert sharded.centers.grad.is_sparse == sharded.sparse_grad
        for name, (a, b) in pairs.items():
            torch.testing.assert_close(
                a, b, atol=tolerance, rtol=tolerance, msg=lambda m, n=name, c=case: f"{n} {c} {m}"
            )


def check_sharded_training(rank, world):
    """A network under DistributedDataParallel and sparse sharded centers, against one process, for some steps."""
    for name in ("sgd", "sparse_adam"):
        check_training_with(name, rank, world)


def check_training_with(name, rank, world):
    torch.manual_seed(0)
    network, start = nn.Linear(DIMENSION, DIMENSION).double(), one_process(20, torch.float64, top_k=3)
    alone, reference = (
        nn.Linear(DIMENSION, DIMENSION).double(),
        one_process(20, torch.float64, top_k=3, sparse_grad=True),
    )
    alone.load_state_dict(network.state_dict())
    reference.load_state_dict(start.state_dict())
    sharded = ShardedHardGlobalSoftminLoss(
        20, DIMENSION, alpha=1.0, decorrelation=0.5, top_k=3, sparse_grad=True
    ).double()
    sharded.load_state_dict(start.state_dict())
    parallel = DistributedDataParallel(network)
    steps = []
    for module, loss_fn in ((alone, reference), (parallel, sharded)):
        optimizers = [
            torch.optim.SGD([*module.parameters(), loss_fn.alpha], lr=0.1),
            sparse_optimizer(loss_fn, name, lr=0.1),
        ]
        steps.append((module, loss_fn, optimizers))
    for seed in range(3):
        sizes = [4, 2, 5][:world] if seed else [3] * world
        mine = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
        points, labels = joint_batch(20, sizes)
        for (module, loss_fn, optimizers), rows in zip(steps, (slice(None), mine), strict=True):
            loss_fn(module(points[rows] + seed), labels[rows]).backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
    torch.testing.assert_close(network.weight, alone.weight, atol=1e-10, rtol=0)
    torch.testing.assert_close(sharded.alpha, reference.alpha, atol=1e-10, rtol=0)
    torch.testing.assert_close(sharded.all_centers(), reference.centers.detach(), atol=1e-10, rtol=0)


def check_replicated(rank, world):
    """Equal local batches under DistributedDataParallel: the gradient of the joint batch."""

    class Training(nn.Module):
        def __init__(self, **options):
            super().__init__()
            torch.manual_seed(0)
            self.network = nn.Linear(DIMENSION, DIMENSION).double()
            self.loss_fn = one_process(40, torch.float64, **options)

        def forward(self, points, labels):
            return self.loss_fn(self.network(points), labels)

    for options in ({"top_k": 1}, {"top_k": 2, "hard_set": "negatives", "chunk_size": 7}, {"similarity": "cosine"}):
        points, labels = joint_batch(40, [4] * world)
        alone, parallel = Training(**options), DistributedDataParallel(Training(**options))
        alone(points, labels).backward()
        mine = slice(4 * rank, 4 * rank + 4)
        parallel(points[mine], labels[mine]).backward()
        for a, b in zip(parallel.module.parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad, atol=1e-10, rtol=1e-10)


def check_state(rank, world):
    """Initial centers differ between ranks; a state dict loads into one, two and three processes; logits agree."""
    torch.manual_seed(0)
    sharded = ShardedHardGlobalSoftminLoss(7, DIMENSION)
    table = sharded.all_centers()
    assert len(table.unique(dim=0)) == 7
    assert sharded.state_dict()["centers"].shape == (7, DIMENSION)
    alone = HardGlobalSoftminLoss(7, DIMENSION)
    alone.load_state_dict(sharded.state_dict())
    assert torch.equal(alone.centers, table)
    embeddings = torch.randn(2 + rank, DIMENSION)
    torch.testing.assert_close(sharded.get_logits(embeddings), alone.get_logits(embeddings))

    pair = dist.new_group([0, 1])
    if rank < 2:
        two = ShardedHardGlobalSoftminLoss(7, DIMENSION, process_group=pair)
        assert len(two.centers) == (4, 3)[rank]
        two.load_state_dict({name: 2 * value for name, value in alone.state_dict().items()})
        state = two.state_dict()
        torch.testing.assert_close(state["centers"], 2 * table)
        alone.load_state_dict(state)
    sharded.load_state_dict({"centers": 3 * table, "alpha": torch.tensor(0.5)})
    torch.testing.assert_close(sharded.all_centers(), 3 * table)
    sharded.set_centers(sharded.local_rows(2 * table))
    torch.testing.assert_close(sharded.all_centers(), torch.nn.functional.normalize(table))
    with pytest.raises(InputError, match=r"centers of shape \(7, 6\) cannot .* of shape \(\d, 6\)"):
        sharded.set_centers(table)
    with pytest.raises(RuntimeError, match="size mismatch for centers"):
        sharded.load_state_dict({"centers": torch.zeros(8, DIMENSION), "alpha": torch.tensor(0.5)})


def check_errors(rank, world):
    """A mistake on one rank ends the call on all of them."""
    loss_fn = ShardedHardGlobalSoftminLoss(7, DIMENSION)
    embeddings, labels = torch.randn(2, DIMENSION), torch.tensor([0, 9 if rank == 1 else 1])
    with pytest.raises(InputError, match="labels 9 are out of range: there are 7 classes"):
        loss_fn(embeddings, labels)
    bad = embeddings[:, :-1] if rank == 1 else embeddings
    with pytest.raises(InputError, match="expected floating point" if rank == 1 else "the input of rank 1 is invalid"):
        loss_fn(bad, labels.clamp(max=6))
    loss_fn(embeddings, labels.clamp(max=6)).backward()  # and the next call is in step again
    if rank == 1:
        loss_fn.centers.data[0] = torch.nan
    row = f"in row {loss_fn.first_class}: " if rank == 1 else "the input of rank 1 is invalid"
    with pytest.raises(InputError, match=row):
        loss_fn(embeddings, labels.clamp(max=6))


def check_everything(rank, world):
    for check in (check_replicated, check_sharded, check_sharded_training, check_state, check_errors):
        check(rank, world)


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 3])
def test_processes_agree_with_one(world, tmp_path):
    spawn(check_everything, world, tmp_path)


def test_one_process_needs_no_group():
    reference = one_process(9, torch.float64, top_k=2)
    sharded = ShardedHardGlobalSoftminLoss(9, DIMENSION, top_k=2, alpha=1.0, decorrelation=0.5).double()
    sharded.load_state_dict(reference.state_dict())
    embeddings, labels = joint_batch(9, [5])
    actual, expected = sharded(embeddings, labels), reference(embeddings, labels)
    actual.backward()
    expected.backward()
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(sharded.centers.grad, reference.centers.grad)
    tuples = (torch.tensor([0, 0]), torch.tensor([1, 2]), torch.tensor([3, 4]))
    torch.testing.assert_close(sharded(embeddings, labels, tuples), reference(embeddings, labels, tuples))
