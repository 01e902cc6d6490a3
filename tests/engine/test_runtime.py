"""The process-wide settings of a run."""

import os

import pytest
import torch

from hgsl.common import ranks
from hgsl.config import Config, ModelConfig, RunConfig
from hgsl.engine.runtime import Runtime, agree_on_precision, build_runtime


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


@pytest.mark.parametrize(
    ("backbone", "units", "precision", "expected"),
    [
        ("tf_efficientnet_lite0", "dot products", "auto", "float32"),  # depthwise
        ("convnext_tiny", "dot products", "auto", "float32"),
        ("resnext50_32x4d", "dot products", "auto", "bfloat16"),  # groups of several channels
        ("resnet50", "dot products", "auto", "bfloat16"),
        ("vit_small_patch16_224", "dot products", "auto", "bfloat16"),
        ("resnet20", "dot products", "auto", "bfloat16"),  # the classifier of CIFAR-10, not one of timm
        ("tf_efficientnet_lite0", "matrix units", "auto", "bfloat16"),
        ("resnet50", "matrix units", "auto", "bfloat16"),
        ("resnet50", "none", "auto", "float32"),
        ("tf_efficientnet_lite0", "none", "auto", "float32"),
        ("tf_efficientnet_lite0", "dot products", "bfloat16", "bfloat16"),
    ],
)
def test_auto_avoids_bfloat16_for_depthwise_convolutions_without_matrix_units(
    monkeypatch: pytest.MonkeyPatch, backbone: str, units: str, precision: str, expected: str
) -> None:
    monkeypatch.setattr("hgsl.common.device.cpu_has_bfloat16", lambda: units != "none")
    monkeypatch.setattr("hgsl.engine.runtime.cpu_has_amx", lambda: units == "matrix units")
    config = Config(RunConfig(device="cpu", precision=precision), model=ModelConfig(backbone=backbone))
    assert build_runtime(config).precision == expected


def test_processes_on_different_processors_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = Runtime(torch.device("cpu"), torch.bfloat16, 0)
    assert agree_on_precision(runtime) == runtime
    monkeypatch.setattr(ranks, "all_gather_object", lambda value: [value, "float32"])
    assert agree_on_precision(runtime).precision == "float32"
