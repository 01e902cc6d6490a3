"""What tests of several parts need: a folder of small photos, real photos, and one thread, as the networks are tiny."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real photos and annotation files; the test is skipped where there is none."""
    folder = os.environ.get("HGSL_TEST_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip(
            "real photos are not here: set HGSL_TEST_DATA to the folder that holds flowers17/, annotations/, ..."
        )
    return Path(folder)


@pytest.fixture
def photo_folder(tmp_path: Path) -> Callable[..., Path]:
    """Returns a maker of folders ROOT/kind_NN/MM.jpg; every kind has a colour, every image its own noise."""

    def make(classes: int = 6, images: int = 4, size: int = 48, name: str = "photos") -> Path:
        generator = np.random.default_rng(0)
        root = tmp_path / name
        for kind in range(classes):
            folder = root / f"kind_{kind:02}"
            folder.mkdir(parents=True)
            colour = generator.integers(40, 216, 3)
            for number in range(images):
                pixels = (colour + generator.integers(-40, 40, (size, size + 8, 3))).clip(0, 255)
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number:02}.jpg")
        return root

    return make
