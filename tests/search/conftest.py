"""A tiny model, and an index of a few photos."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hgsl.models import create_embedder, save_embedder
from hgsl.search import SearchIndex, build_index


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Returns a maker of run folders with a model of random weights."""

    def make(name: str = "run", seed: int = 0) -> Path:
        torch.manual_seed(seed)
        model = create_embedder("test_resnet", embedding_size=16, weights="none")
        save_embedder(model, tmp_path / name, image_size=32)
        return tmp_path / name

    return make


@pytest.fixture
def run(make_run: Callable[..., Path]) -> Path:
    return make_run()


@pytest.fixture
def photos(photo_folder: Callable[..., Path]) -> Path:
    """24 photos of 6 kinds in class folders."""
    return photo_folder()


@pytest.fixture
def index(tmp_path: Path, run: Path, photos: Path) -> SearchIndex:
    build_index(tmp_path / "index", photos, checkpoint=run, device="cpu", progress=False)
    return SearchIndex.open(tmp_path / "index", device="cpu")
