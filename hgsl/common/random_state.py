"""State of the global random generators of PyTorch, Python and NumPy."""

# ruff: noqa: NPY002 (the legacy generator of NumPy is the global one)

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def seed_all(seed: int) -> None:
    """Seeds every global generator."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def random_state() -> dict[str, Any]:
    """Returns the state of every global generator, in tensors and plain values."""
    version, internal_state, gauss = random.getstate()
    legacy = np.random.get_state(legacy=False)
    keys, position = legacy["state"]["key"], legacy["state"]["pos"]
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "python": [version, torch.tensor(internal_state), gauss],
        "numpy": [torch.from_numpy(keys.astype(np.int64)), position, legacy["has_gauss"], legacy["gauss"]],
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """Restores the state that :func:`random_state` returned."""
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
    version, internal_state, gauss = state["python"]
    random.setstate((version, tuple(internal_state.tolist()), gauss))
    keys, *rest = state["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), *rest))


@contextmanager
def preserved_random_state() -> Iterator[None]:
    """Restores every global generator on exit."""
    state = random_state()
    try:
        yield
    finally:
        restore_random_state(state)


@contextmanager
def seeded_torch(seed: int) -> Iterator[None]:
    """Seeds only PyTorch's CPU generator, and restores it on exit; cheap enough to enter for each image."""
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would also queue a call, with its traceback, for each uninitialized accelerator backend.
        torch.default_generator.manual_seed(seed)
        yield


@contextmanager
def seeded_python(seed: int) -> Iterator[None]:
    """Seeds the generators of Python and NumPy, and restores them on exit; for libraries that use these."""
    python, legacy = random.getstate(), np.random.get_state(legacy=False)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)
