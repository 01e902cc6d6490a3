"""Masked training with DistributedDataParallel in two processes."""

from pathlib import Path

import pytest
import torch
from torch import nn

from hgsl.common.errors import InputError
from hgsl.sparsity import Masks, sparsify
from tests.helpers import spawn


def _train(network: nn.Module, masks: Masks, x: torch.Tensor, y: torch.Tensor, steps: int = 3) -> None:
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    for step in range(steps):
        masks.temperature = 2.0**step
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(network(x), y) + 1e-4 * masks.penalty()
        loss.backward()
        optimizer.step()


def _case(granularity: str) -> tuple[nn.Module, Masks, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 4))
    x, y = torch.randn(8, 3, 8, 8), torch.randint(4, (8,))
    masked, masks = sparsify(model, 0.1, granularity=granularity, example=x)  # type: ignore[arg-type]
    return masked, masks, x, y


def _worker(rank: int, world_size: int, granularity: str, folder: Path) -> None:
    network, masks, x, y = _case(granularity)
    parallel = nn.parallel.DistributedDataParallel(network)
    with pytest.raises(InputError, match="is wrapped in DistributedDataParallel"):
        sparsify(parallel)
    _train(parallel, masks, x[rank::2], y[rank::2])
    # In a ticket the scores have no gradient, and the reducer must not wait for one.
    for scores in masks.mask_parameters():
        scores.requires_grad_(False)
    masks.ticket = True
    parallel = nn.parallel.DistributedDataParallel(network)
    parallel(x[rank::2]).sum().backward()
    torch.save(network.state_dict(), folder / f"{rank}.pt")


@pytest.mark.slow
@pytest.mark.parametrize("granularity", ["weight", "channel"])
def test_two_processes_train_the_same_masks_as_one(tmp_path: Path, granularity: str) -> None:
    spawn(_worker, 2, tmp_path, granularity, tmp_path)
    network, masks, x, y = _case(granularity)
    before = [scores.detach().clone() for scores in masks.mask_parameters()]
    _train(network, masks, x, y)
    for rank in range(2):
        other = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for name, value in network.state_dict().items():
            torch.testing.assert_close(other[name], value, rtol=1e-4, atol=1e-6)
    assert not any(torch.equal(old, new) for old, new in zip(before, masks.mask_parameters(), strict=True))
