"""CIFAR-10 in memory: 32 x 32 images as uint8, cropped and flipped in batches on the device.

At this size, decoding files in loader processes would take longer than the network.
"""

import io
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from hgsl.common.errors import InputError
from hgsl.common.images import DAMAGED, IMAGE_SUFFIXES, decode
from hgsl.common.progress import progress_bar

SIDE, CHANNELS, CLASSES = 32, 3, 10
PADDING = 4  # of the augmentation, on each side
RECORD = 1 + CHANNELS * SIDE * SIDE  # a label and three planes, red first
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)  # of the 50,000 training images
TRAIN_FILES, TEST_FILES = [f"data_batch_{number}.bin" for number in range(1, 6)], ["test_batch.bin"]
Row = tuple[str, str, Callable[[], bytes]]  # class, name, reader
NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@dataclass(frozen=True)
class ImageArray:
    """Images in memory.

    Attributes:
        images: ``(N, 3, 32, 32)`` uint8.
        labels: ``(N,)`` int64, an index into ``class_names``.
        class_names: One name per class.
    """

    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: Tensor) -> "ImageArray":
        """The images of these rows."""
        return replace(self, images=self.images[rows], labels=self.labels[rows])

    def to(self, device: torch.device) -> "ImageArray":
        """The same images on ``device``."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))


def load_cifar10(root: str | Path) -> tuple[ImageArray, ImageArray]:
    """Reads all training images and all test images.

    Args:
        root: The folder with the official binary version (``data_batch_1.bin`` ..., of 3,073-byte records), directly
            or in ``cifar-10-batches-bin``; or a folder or zip of images, ``train/CLASS/NAME`` and ``test/CLASS/NAME``.

    Raises:
        FileNotFoundError: ``root`` does not exist.
        InputError: It is none of these, a file is damaged, or it is the Python version, whose batches are pickles.
    """
    root = Path(root).expanduser()
    if not root.exists():
        raise FileNotFoundError(f"no CIFAR-10 at {root}: expected its folder or a zip of class folders")
    if root.is_file():
        if not zipfile.is_zipfile(root):
            raise InputError(f"{root} is not a zip file: unpack cifar-10-binary.tar.gz and give its folder")
        with zipfile.ZipFile(root) as archive:
            names = [name for name in archive.namelist() if not name.endswith("/")]
            return _class_folders(root, [(name, partial(archive.read, name)) for name in names])
    for folder in (root, root / "cifar-10-batches-bin"):
        if (folder / TEST_FILES[0]).is_file():
            return _read_records(folder, TRAIN_FILES), _read_records(folder, TEST_FILES)
    for folder in (root, root / "cifar-10-batches-py"):
        if (folder / "test_batch").is_file():
            raise InputError(
                f"{folder} has the Python version of CIFAR-10, whose pickles can run arbitrary code when loaded: "
                "get the binary version, cifar-10-binary.tar.gz, from https://www.cs.toronto.edu/~kriz/cifar.html"
            )
    files = sorted(path for part in ("train", "test") for path in (root / part).glob("*/*"))
    return _class_folders(root, [(path.relative_to(root).as_posix(), path.read_bytes) for path in files])


def hold_out(part: ImageArray, share: float, seed: int = 0) -> tuple[ImageArray, ImageArray]:
    """Returns the images without a random ``share``, and that share; the split depends on ``seed`` alone."""
    order = torch.randperm(len(part), generator=torch.Generator().manual_seed(seed))
    count = round(share * len(part))
    return part.take(order[count:].sort().values), part.take(order[:count].sort().values)


def draw_crops(count: int, generator: torch.Generator) -> list[Tensor]:
    """Draws the augmentation of ``count`` images: shift down, shift right, and flip, each ``(count,)`` int64.

    Args:
        count: Number of images.
        generator: On the CPU, so that the same seed gives the same images on every device.
    """
    top, left = (torch.randint(2 * PADDING + 1, (count, 1), generator=generator) for _ in range(2))
    flip = torch.rand(count, 1, generator=generator) < 0.5
    return [top[:, 0], left[:, 0], flip[:, 0].long()]


def augment(images: Tensor, crops: Sequence[Tensor]) -> Tensor:
    """Shifts each image by up to ``PADDING`` pixels, filling with black, and flips half of them horizontally.

    Args:
        images: ``(B, C, H, W)``.
        crops: Of :func:`draw_crops`, on the device of the images.
    """
    count, _, height, width = images.shape
    top, left, flip = (values[:, None] for values in crops)
    rows = top + torch.arange(height, device=images.device)  # (B, H)
    columns = left + torch.arange(width, device=images.device).expand(count, -1)
    columns = torch.where(flip.bool(), columns.flip(1), columns)  # (B, W)
    padded = F.pad(images, [PADDING] * 4)
    batch = torch.arange(count, device=images.device)[:, None, None]
    picked = padded.permute(0, 2, 3, 1)[batch, rows[:, :, None], columns[:, None]]
    return picked.permute(0, 3, 1, 2)  # (B, C, H, W), channels last in memory


def _read_records(folder: Path, names: Sequence[str]) -> ImageArray:
    parts = []
    for name in names:
        path = folder / name
        if not path.is_file():
            raise FileNotFoundError(f"no {path}: the binary version of CIFAR-10 has {', '.join(names)}")
        records = np.fromfile(path, dtype=np.uint8)
        if len(records) == 0 or len(records) % RECORD:
            raise InputError(f"{path} has {len(records)} bytes, expected whole records of {RECORD}: it is incomplete")
        parts.append(records.reshape(-1, RECORD))
        if parts[-1][:, 0].max() >= CLASSES:
            raise InputError(f"{path} has label {parts[-1][:, 0].max()}, expected 0 to 9: it is not a CIFAR-10 batch")
    records = np.concatenate(parts)
    images = torch.from_numpy(records[:, 1:].reshape(-1, CHANNELS, SIDE, SIDE))
    return ImageArray(images, torch.from_numpy(records[:, 0].astype(np.int64)), _class_names(folder))


def _class_names(folder: Path) -> tuple[str, ...]:
    path = folder / "batches.meta.txt"
    names = path.read_text(encoding="utf-8").split() if path.is_file() else []
    return tuple(names) if len(names) == CLASSES else NAMES


def _class_folders(root: Path, files: Sequence[tuple[str, Callable[[], bytes]]]) -> tuple[ImageArray, ImageArray]:
    """Training and test images from (name, reader) of files PART/CLASS/NAME, possibly below further folders."""
    rows: dict[str, list[Row]] = {"train": [], "test": []}
    for name, read in files:
        parts = PurePosixPath(name).parts
        if len(parts) >= 3 and parts[-3] in rows and PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES:
            rows[parts[-3]].append((parts[-2], name, read))
    if not rows["train"] or not rows["test"]:
        raise InputError(
            f"{root} is not CIFAR-10: expected data_batch_1.bin ..., or train/CLASS/NAME and test/CLASS/NAME images"
        )
    names = tuple(sorted({name for name, _, _ in rows["train"]}))
    if untrained := {name for name, _, _ in rows["test"]} - set(names):
        raise InputError(f"{root}: test has classes without training images: {', '.join(sorted(untrained))}")
    return _decode(root, rows["train"], names), _decode(root, rows["test"], names)


def _decode(root: Path, rows: Sequence[Row], names: tuple[str, ...]) -> ImageArray:
    images = np.empty((len(rows), SIDE, SIDE, CHANNELS), np.uint8)
    bar = progress_bar(rows, desc="reading images", unit="image", leave=False)
    for row, (_, name, read) in enumerate(bar):
        try:
            with Image.open(io.BytesIO(read())) as image:
                pixels = np.asarray(decode(image))
        except (*DAMAGED, zipfile.BadZipFile, zlib.error) as error:
            raise InputError(f"{root}: {name} is not a readable image ({error})") from None
        if pixels.shape != images.shape[1:]:
            raise InputError(
                f"{root}: {name} is {pixels.shape[1]} x {pixels.shape[0]} pixels, expected {SIDE} x {SIDE}"
            )
        images[row] = pixels
    labels = torch.tensor([names.index(label) for label, _, _ in rows])
    return ImageArray(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), labels, names)
