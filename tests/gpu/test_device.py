"""The device of the other tests in this folder: it exists, and ``auto`` picks it."""

import pytest
import torch

from hgsl.common.device import pick_device
from tests.gpu.conftest import ABSENT, NAME


@pytest.mark.skipif(ABSENT, reason="no GPU: the tests in tests/gpu need CUDA (HGSL_TEST_DEVICE=cpu runs some without)")
def test_the_device_computes() -> None:
    device = pick_device(NAME)
    assert torch.ones(3, device=device).sum() == 3
    if device.type == "cuda":
        assert pick_device("auto") == torch.device("cuda")
