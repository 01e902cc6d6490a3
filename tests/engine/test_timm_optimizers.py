"""Optimizers of timm: groups keep their rates, training resumes to the bit, and what cannot work is refused."""

from pathlib import Path

import pytest
import torch
from torch import nn

from hgsl.common.errors import InputError
from hgsl.config import Config, LossConfig, OptimConfig
from hgsl.engine.folder.checkpoint import load_state, save_state
from hgsl.engine.parts.optim import TIMM_OPTIMIZERS, create_optimizer

SHAPES = ((6, 4), (3, 2, 3, 3), (4,), ())


def build(name: str) -> tuple[list[nn.Parameter], torch.optim.Optimizer]:
    generator = torch.Generator().manual_seed(0)
    parameters = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]
    groups = [
        {"name": "backbone", "params": parameters[:2], "lr": 1e-3},
        {"name": "centers", "params": [parameters[2]], "lr": 1e-2, "weight_decay": 0.0},
        {"name": "scale", "params": [parameters[3]], "lr": 0.0, "weight_decay": 0.0},
    ]
    return parameters, create_optimizer(groups, OptimConfig(name=name, weight_decay=1e-4))


def train(parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(3):
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()


@pytest.mark.parametrize("name", TIMM_OPTIMIZERS)
def test_groups_and_resume(name: str, tmp_path: Path) -> None:
    parameters, optimizer = build(name)
    start = [parameter.detach().clone() for parameter in parameters]
    assert [group["lr"] for group in optimizer.param_groups] == [1e-3, 1e-2, 0.0]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [1e-4, 0.0, 0.0]
    train(parameters, optimizer, seed=1)
    moved = [not torch.equal(parameter, before) for parameter, before in zip(parameters, start, strict=True)]
    assert moved == [True, True, True, False]  # the last has a rate of 0

    save_state(tmp_path / "state.safetensors", optimizer.state_dict())
    resumed, other = build(name)
    with torch.no_grad():
        for target, source in zip(resumed, parameters, strict=True):
            target.copy_(source)
    other.load_state_dict(load_state(tmp_path / "state.safetensors"))
    train(parameters, optimizer, seed=2)
    train(resumed, other, seed=2)
    assert all(torch.equal(one, two) for one, two in zip(parameters, resumed, strict=True))


def test_refusals() -> None:
    with pytest.raises(InputError, match="did you mean 'lion'"):
        create_optimizer([{"params": [nn.Parameter(torch.zeros(2))]}], OptimConfig(name="lionn"))
    with pytest.raises(ValueError, match=r"optim\.momentum belongs to sgd, but optim\.name is lion"):
        OptimConfig(name="lion", momentum=0.9)
    with pytest.raises(ValueError, match=r"optim\.momentum must lie from 0 to below 1, or be empty, found 9"):
        OptimConfig(name="sgd", momentum=9)
    with pytest.raises(ValueError, match=r"optim\.nesterov needs a momentum above 0"):
        OptimConfig(name="sgd", momentum=0.0, nesterov=True)
    with pytest.raises(ValueError, match=r"optim\.lr must be finite, found nan"):
        OptimConfig(lr=float("nan"))
    with pytest.raises(ValueError, match="'lamb' computes a norm or a mean over all class centers"):
        Config(loss=LossConfig(sharded=True), optim=OptimConfig(name="lamb"))
