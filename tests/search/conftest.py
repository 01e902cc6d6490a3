"""A tiny model, an index of a few images, and its server."""

import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hgsl.models import create_embedder, save_embedder
from hgsl.search import IndexReport, SearchIndex, build_index
from hgsl.search.encoder import Encoder
from hgsl.search.web.server import make_server


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Returns a function that creates a run folder with a model of random weights."""

    def make(name: str = "run", seed: int = 0) -> Path:
        torch.manual_seed(seed)
        model = create_embedder("test_resnet", embedding_size=16, weights="none", image_size=32)
        save_embedder(model, tmp_path / name)
        return tmp_path / name

    return make


@pytest.fixture
def build() -> Callable[..., IndexReport]:
    """``build_index`` on the CPU without a progress bar."""
    return partial(build_index, device="cpu", progress=False)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the batches that the model has embedded."""
    sizes = []
    vectors = Encoder.vectors
    monkeypatch.setattr(Encoder, "vectors", lambda self, tensors: sizes.append(len(tensors)) or vectors(self, tensors))
    return sizes


@pytest.fixture
def run(make_run: Callable[..., Path]) -> Path:
    return make_run()


@pytest.fixture
def photos(photo_folder: Callable[..., Path]) -> Path:
    """24 images of 6 classes in class folders."""
    return photo_folder()


@pytest.fixture
def index(tmp_path: Path, run: Path, photos: Path) -> SearchIndex:
    build_index(tmp_path / "index", photos, checkpoint=run, device="cpu", progress=False)
    return SearchIndex.open(tmp_path / "index", device="cpu")


@pytest.fixture(scope="session")
def shared_index(tmp_path_factory: pytest.TempPathFactory) -> SearchIndex:
    """An index of 24 images of 6 classes that no test may change."""
    folder = tmp_path_factory.mktemp("shared")
    generator = np.random.default_rng(0)
    for kind in range(6):
        (folder / f"photos/kind_{kind:02}").mkdir(parents=True)
        color = generator.integers(40, 216, 3)
        for number in range(4):
            pixels = (color + generator.integers(-40, 40, (48, 56, 3))).clip(0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"photos/kind_{kind:02}/{number:02}.jpg")
    torch.manual_seed(0)
    save_embedder(create_embedder("test_resnet", embedding_size=16, weights="none", image_size=32), folder / "run")
    build_index(folder / "index", folder / "photos", checkpoint=folder / "run", device="cpu", progress=False)
    return SearchIndex.open(folder / "index", device="cpu")


@pytest.fixture(scope="module")
def serve() -> Iterator[Callable[..., str]]:
    """Returns a function that serves an index on a free port, in a thread, and returns its address."""
    running = []

    def start(index: SearchIndex, names: Iterable[str] = ()) -> str:
        server = make_server(index, names)
        listener = socket.create_server(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        running.append((server, thread))
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    yield start
    for server, thread in running:
        server.should_exit = True
        thread.join(30)
