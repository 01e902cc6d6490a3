"""Tests of a GPU: skipped with one line where there is none.

``HGSL_TEST_DEVICE=cpu`` runs those that make sense on a CPU there, so that their code is executed without a GPU too.
"""

import os
from pathlib import Path

import pytest
import torch

NAME = os.environ.get("HGSL_TEST_DEVICE", "cuda")
ABSENT = NAME.startswith("cuda") and not torch.cuda.is_available()
ON_CUDA = NAME.startswith("cuda")


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Leaves out the files of this folder without the device; ``test_device.py`` alone says so."""
    return True if ABSENT and collection_path.suffix == ".py" and collection_path.name != "test_device.py" else None


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device(NAME)


@pytest.fixture
def needs_cuda() -> None:
    """Skips a test of what only a GPU has."""
    if not ON_CUDA:
        pytest.skip("only on a GPU")
