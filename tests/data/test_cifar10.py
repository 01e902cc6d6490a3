"""CIFAR-10 in each of its forms, and its augmentation against a slow one of single images."""

import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hgsl.common.errors import InputError
from hgsl.data.cifar10 import MEAN, augment, draw_crops, hold_out, load_cifar10

GENERATOR = np.random.default_rng(0)
TRAIN = GENERATOR.integers(0, 256, (20, 3, 32, 32), dtype=np.uint8)
TEST = GENERATOR.integers(0, 256, (10, 3, 32, 32), dtype=np.uint8)
NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0)).save(buffer, "png")
    return buffer.getvalue()


@pytest.fixture
def binary(tmp_path: Path) -> Path:
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    for number in range(5):
        rows = TRAIN[4 * number : 4 * number + 4]
        records = [bytes([(4 * number + i) % 10]) + image.tobytes() for i, image in enumerate(rows)]
        (folder / f"data_batch_{number + 1}.bin").write_bytes(b"".join(records))
    (folder / "test_batch.bin").write_bytes(b"".join(bytes([i]) + image.tobytes() for i, image in enumerate(TEST)))
    (folder / "batches.meta.txt").write_text("\n".join(NAMES) + "\n\n")
    return tmp_path


def members() -> dict[str, bytes]:
    files = {f"train/{NAMES[i % 10]}/{i:04}.png": png(image) for i, image in enumerate(TRAIN)}
    return files | {f"test/{NAMES[i]}/0000.png": png(image) for i, image in enumerate(TEST)} | {"README.md": b"hello"}


def test_binary_records(binary: Path) -> None:
    for root in (binary, binary / "cifar-10-batches-bin"):
        train, test = load_cifar10(root)
        assert train.images.dtype == torch.uint8
        np.testing.assert_array_equal(train.images, TRAIN)
        np.testing.assert_array_equal(test.images, TEST)
        assert train.labels.tolist() == [i % 10 for i in range(20)]
        assert train.class_names == test.class_names == NAMES


@pytest.mark.parametrize("form", ["folder", "zip", "zip with a folder in it"])
def test_class_folders_hold_the_same_images(tmp_path: Path, form: str) -> None:
    root = tmp_path / "images"
    if form == "folder":
        for name, content in members().items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(content)
    else:
        root = tmp_path / "images.zip"
        with zipfile.ZipFile(root, "w") as archive:
            for name, content in members().items():
                archive.writestr(f"cifar/{name}" if "in it" in form else name, content)
    train, test = load_cifar10(root)
    assert train.class_names == NAMES
    rows = sorted(range(20), key=lambda i: (NAMES[i % 10], i)) if form == "folder" else range(20)
    np.testing.assert_array_equal(train.images, TRAIN[list(rows)])
    assert train.labels.tolist() == [i % 10 for i in rows]
    np.testing.assert_array_equal(test.images, TEST)


def test_python_batches_are_refused_unread(tmp_path: Path) -> None:
    bomb = tmp_path / "ran"

    class Bomb:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (bomb,)

    (tmp_path / "cifar-10-batches-py").mkdir()
    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(InputError, match=r"pickles.*get the binary version, cifar-10-binary.tar.gz"):
        load_cifar10(tmp_path)
    assert not bomb.exists()


def test_errors_name_the_file(binary: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no CIFAR-10 at"):
        load_cifar10(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"is not CIFAR-10: expected data_batch_1\.bin"):
        load_cifar10(_empty(tmp_path))
    (tmp_path / "text.zip").write_text("no zip")
    with pytest.raises(InputError, match="is not a zip file"):
        load_cifar10(tmp_path / "text.zip")
    batch = binary / "cifar-10-batches-bin" / "data_batch_3.bin"
    whole = batch.read_bytes()
    batch.write_bytes(whole[:-1])
    with pytest.raises(InputError, match=r"data_batch_3\.bin has 12291 bytes, expected whole records of 3073"):
        load_cifar10(binary)
    batch.write_bytes(bytes([10]) + whole[1:])
    with pytest.raises(InputError, match=r"data_batch_3\.bin has label 10"):
        load_cifar10(binary)
    batch.unlink()
    with pytest.raises(FileNotFoundError, match=r"data_batch_3\.bin"):
        load_cifar10(binary)


def _empty(folder: Path) -> Path:
    (folder / "empty").mkdir()
    return folder / "empty"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train/cat/9.png", b"no image", r"train/cat/9\.png is not a readable image"),
        ("train/cat/9.png", png(TRAIN[0][:, :30]), r"train/cat/9\.png is 32 x 30 pixels, expected 32 x 32"),
        ("test/zebra/0.png", png(TRAIN[0]), "test has classes without training images: zebra"),
    ],
)
def test_bad_images_are_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for member, data in (members() | {name: content}).items():
            archive.writestr(member, data)
    with pytest.raises(InputError, match=message):
        load_cifar10(tmp_path / "x.zip")


def test_a_damaged_member_of_a_zip_is_named(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for member, data in members().items():
            archive.writestr(member, data)
    content = (tmp_path / "x.zip").read_bytes()
    pixels = next(iter(members().values()))
    (tmp_path / "x.zip").write_bytes(content.replace(pixels, pixels[:-1] + b"?", 1))
    with pytest.raises(InputError, match=f"{next(iter(members()))} is not a readable image .*CRC"):
        load_cifar10(tmp_path / "x.zip")


def test_held_out_images_are_disjoint_and_reproducible(binary: Path) -> None:
    train, _ = load_cifar10(binary)
    rest, held = hold_out(train, 0.25)
    again = hold_out(train, 0.25)[1]
    assert (len(rest), len(held)) == (15, 5)
    assert torch.equal(held.images, again.images)
    both = torch.cat([rest.images, held.images]).flatten(1)
    assert len(both.unique(dim=0)) == 20
    assert not torch.equal(held.images, hold_out(train, 0.25, seed=1)[1].images)


def test_augmentation_is_a_shift_and_a_flip_of_each_image() -> None:
    images = torch.from_numpy(np.tile(TRAIN, (20, 1, 1, 1)))
    crops = draw_crops(len(images), torch.Generator().manual_seed(0))
    augmented = augment(images, crops)
    assert augmented.dtype == torch.uint8
    shifts = set()
    for image, result in zip(images, augmented, strict=True):
        padded = torch.nn.functional.pad(image, [4] * 4)
        candidates = {
            (y, x, flipped): crop.flip(2) if flipped else crop
            for y in range(9)
            for x in range(9)
            for crop in [padded[:, y : y + 32, x : x + 32]]
            for flipped in (False, True)
        }
        (match,) = [key for key, crop in candidates.items() if torch.equal(crop, result)]
        shifts.add(match)
    assert {y for y, _, _ in shifts} == {x for _, x, _ in shifts} == set(range(9))
    share = np.mean([flipped for _, _, flipped in shifts])
    assert 0.4 < share < 0.6
    again = draw_crops(len(images), torch.Generator().manual_seed(0))
    assert all(torch.equal(*pair) for pair in zip(crops, again, strict=True))


def test_the_shared_images(test_data: Path) -> None:
    path = test_data / "cifar10-images.zip"
    if not path.is_file():
        pytest.skip("no cifar10-images.zip in HGSL_TEST_DATA")
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.endswith(".jpg")]
    assert sum(name.startswith("train/") for name in names) == 50_000
    assert sum(name.startswith("test/") for name in names) == 10_000


@pytest.mark.slow
def test_the_shared_images_in_full(test_data: Path) -> None:
    path = test_data / "cifar10-images.zip"
    if not path.is_file():
        pytest.skip("no cifar10-images.zip in HGSL_TEST_DATA")
    train, test = load_cifar10(path)
    assert train.class_names == NAMES
    assert train.labels.bincount().tolist() == [5000] * 10
    assert test.labels.bincount().tolist() == [1000] * 10
    mean = (train.images.double() / 255).mean((0, 2, 3))
    torch.testing.assert_close(mean, torch.tensor(MEAN, dtype=torch.float64), atol=2e-3, rtol=0)
