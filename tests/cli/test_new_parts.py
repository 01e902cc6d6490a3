"""A part added to the dict of its package is accepted by the command line and trains."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from hgsl.cli import train
from hgsl.config import OptimConfig
from hgsl.data import Manifest
from hgsl.data.adapters import DATASETS, folder
from hgsl.data.samplers import SAMPLERS
from hgsl.data.samplers.rows import Rows
from hgsl.engine.folder.logging import read_metrics
from hgsl.engine.parts.optim import OPTIMIZERS, SCHEDULES
from hgsl.losses import LOSSES
from hgsl.models import load_embedder
from hgsl.models.pooling import POOLINGS
from tests.helpers import SMALL

pytestmark = pytest.mark.usefixtures("in_tmp_path")
WORDS = [*SMALL, "--train.epochs", "1", "--run.dir", "out"]


class MinPool(nn.Module):
    """The smallest value over all positions."""

    expansion = 1

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features.amin(dim=(2, 3))


def test_a_pooling(photo_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(POOLINGS, "min", MinPool)
    assert train.main([*WORDS, "--data.root", str(photo_folder()), "--model.pooling", "min"]) == 0
    assert isinstance(load_embedder("out").pooling, MinPool)


def test_a_data_set(photo_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def load(root: Path, only: str = "") -> Manifest:
        return folder.load(root / only)

    monkeypatch.setitem(DATASETS, "mine", load)
    words = ["--data.name", "mine", "--data.root", str(photo_folder().parent), "--data.options.only", "photos"]
    assert train.main([*WORDS, *words]) == 0
    assert json.loads(Path("out/report.json").read_text())["after"]["num_queries"] == 12


def test_a_sampler(photo_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def first_rows(labels: Rows, batch_size: int, per_class: int, rng: object, categories: Rows | None) -> Rows:
        return np.arange(batch_size)[None]

    monkeypatch.setitem(SAMPLERS, "first", first_rows)
    assert train.main([*WORDS, "--data.root", str(photo_folder()), "--data.sampler", "first"]) == 0
    assert len(read_metrics(Path("out/metrics.jsonl"))) == 1


class CenterDistance(nn.Module):
    """The mean distance of the embeddings to the centers of their classes."""

    def __init__(self, num_classes: int, embedding_size: int, weight: float = 1.0) -> None:
        super().__init__()
        self.centers, self.weight = nn.Parameter(torch.zeros(num_classes, embedding_size)), weight

    def forward(self, embeddings: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return self.weight * (embeddings - self.centers[labels]).norm(dim=1).mean()


def test_a_loss(photo_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LOSSES, "CenterDistance", CenterDistance)
    words = ["--loss.name", "CenterDistance", "--loss.options", "{weight: 3.0}", "--optim.centers_lr", "1e-9"]
    at = WORDS.index("--loss.top_k")  # which is refused beside another loss
    small = [*WORDS[:at], *WORDS[at + 2 :]]
    assert train.main([*small, "--data.root", str(photo_folder()), *words]) == 0
    first = read_metrics(Path("out/metrics.jsonl"))[0]
    assert first["loss"] == pytest.approx(3.0, abs=1e-3), "unit embeddings, centers at zero"


def test_an_optimizer_and_a_schedule(photo_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def adagrad(groups: list, settings: OptimConfig) -> torch.optim.Optimizer:
        return torch.optim.Adagrad(groups, lr=settings.lr)

    monkeypatch.setitem(OPTIMIZERS, "adagrad", adagrad)
    monkeypatch.setitem(SCHEDULES, "half", lambda settings, progress, epoch: 0.5)
    words = ["--optim.name", "adagrad", "--optim.schedule", "half", "--optim.warmup", "0", "--optim.lr", "0.01"]
    assert train.main([*WORDS, "--data.root", str(photo_folder()), *words]) == 0
    assert [record["lr/backbone"] for record in read_metrics(Path("out/metrics.jsonl"))] == pytest.approx([0.005] * 3)
    moved = load_file("out/state.safetensors")
    assert any(name.endswith("/sum") for name in moved), "Adagrad's state is saved"
