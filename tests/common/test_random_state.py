# ruff: noqa: NPY002 (the legacy generator of NumPy is the global one)

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from hgsl.common.random_state import preserved_random_state, random_state, restore_random_state, seed_all, seeded_torch
from hgsl.engine.folder.checkpoint import load_state, save_state


def draw() -> list[float]:
    return [random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.rand(()).item()]


@pytest.mark.parametrize("drawn", [0, 1, 700])
def test_every_generator_continues_from_a_file(tmp_path: Path, drawn: int) -> None:
    seed_all(3)
    for _ in range(drawn):
        draw()
    save_state(tmp_path / "state.safetensors", random_state())
    expected = [draw() for _ in range(3)]
    seed_all(4)
    restore_random_state(load_state(tmp_path / "state.safetensors"))
    assert [draw() for _ in range(3)] == expected


def test_a_seed_sets_every_generator() -> None:
    seed_all(2**40)
    first = draw()
    assert draw() != first
    seed_all(2**40)
    assert draw() == first


def test_every_generator_is_restored_even_after_an_error() -> None:
    seed_all(5)
    expected = draw()
    seed_all(5)
    with pytest.raises(ZeroDivisionError), preserved_random_state():
        draw()
        raise ZeroDivisionError
    assert draw() == expected


def test_torch_alone_is_seeded_for_a_while() -> None:
    seed_all(6)
    expected = draw()
    seed_all(6)
    with seeded_torch(7):
        inside = torch.rand(())
    assert draw() == expected
    with seeded_torch(7):
        assert torch.rand(()) == inside
