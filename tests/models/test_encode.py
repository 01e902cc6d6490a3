"""Embeddings of paths and images: those of the evaluation, in order, and broken images by name."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hgsl import create_embedder, load_embedder
from hgsl.common.errors import InputError
from hgsl.data import RetrievalDataset
from hgsl.data.adapters.folder import load as load_folder
from hgsl.evaluation import embed
from hgsl.models import Embedder, save_embedder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Embedder:
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    save_embedder(create_embedder("test_resnet", embedding_size=8, weights="none", image_size=32), folder)
    return load_embedder(folder).to(memory_format=torch.channels_last)  # as an evaluation moves it to its device


def write_images(folder: Path) -> list[Path]:
    """Five images of several sizes and modes; the last is rotated by its EXIF orientation."""
    generator = np.random.default_rng(0)
    paths = []
    for number, (width, height) in enumerate(((40, 50), (90, 48), (32, 32), (33, 100), (64, 40))):
        path = folder / f"class_{number % 2}" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        image = Image.fromarray(generator.integers(0, 256, (height, width, 3)).astype(np.uint8))
        exif = Image.Exif()
        exif[0x0112] = 6 if number == 4 else 1
        (image.convert("L") if number == 2 else image).save(path, exif=exif)
        paths.append(path)
    return paths


def test_vectors_are_those_of_the_evaluation(model: Embedder, tmp_path: Path) -> None:
    write_images(tmp_path)
    manifest = load_folder(tmp_path)
    paths = [tmp_path / path for path in manifest.paths]
    expected = embed(model, RetrievalDataset(manifest, model.transform()), batch_size=2).embeddings
    model.train()
    vectors = model.encode(paths, batch_size=2, progress=False)
    assert model.training
    model.eval()
    assert vectors.dtype == np.float32
    assert np.array_equal(vectors, expected)
    opened = [Image.open(path) for path in paths]
    assert np.array_equal(model.encode([str(paths[0]), *opened[1:]], 2, workers=1), expected)
    np.testing.assert_allclose(model.encode(paths[3]), expected[3:4], rtol=0, atol=1e-6)
    assert model.encode([]).shape == (0, 8)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_is_named(workers: int, model: Embedder, tmp_path: Path) -> None:
    paths = write_images(tmp_path)
    paths[3].write_bytes(paths[3].read_bytes()[:300])
    with pytest.raises(InputError, match=rf"^cannot read image {paths[3]}: "):
        model.encode(paths, 2, workers=workers, progress=False)
    with pytest.raises(InputError, match=r"^image .*none\.png does not exist$"):
        model.encode([tmp_path / "none.png"], workers=workers)
    with pytest.raises(InputError, match=r"^cannot decode images\[1\]: .* more than 100 times"):
        model.encode([paths[0], Image.new("RGB", (500, 2))], workers=workers)


def test_arguments_of_another_type(model: Embedder) -> None:
    with pytest.raises(InputError, match=r"images is of type generator: expected a list of paths or PIL images"):
        model.encode(path for path in ("a.jpg", "b.jpg"))  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"images\[0\] is of type ndarray: expected a path or a PIL image"):
        model.encode([np.zeros((4, 4, 3), np.uint8)])  # type: ignore[list-item]
    with pytest.raises(InputError, match="batch_size must be at least 1, found 0"):
        model.encode([], batch_size=0)
    with pytest.raises(InputError, match="batch_size must be a whole number of at least 1, found 'a'"):
        model.encode([], batch_size="a")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="workers must be at least 0, found -1"):
        model.encode([], workers=-1)
