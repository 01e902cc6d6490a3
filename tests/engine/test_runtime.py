"""The process-wide settings of a run."""

import os

import pytest
import torch

from hgsl.config import Config, RunConfig
from hgsl.engine.runtime import build_runtime


def test_deterministic_kernels_are_chosen_on_every_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    try:
        build_runtime(Config(run=RunConfig(device="cpu", deterministic=True)))
        assert torch.are_deterministic_algorithms_enabled()
        assert os.environ.pop("CUBLAS_WORKSPACE_CONFIG") == ":4096:8"  # which matrix products on a GPU need
    finally:
        build_runtime(Config(run=RunConfig(device="cpu")))
    assert not torch.are_deterministic_algorithms_enabled()
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
