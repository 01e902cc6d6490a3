"""Embedding of image files in batches; unreadable files are reported and skipped."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from hgsl.common.errors import InputError
from hgsl.common.images import read_image
from hgsl.common.locations import locate
from hgsl.common.transforms import Transform
from hgsl.common.workers import init_worker
from hgsl.evaluation.knn.vectors import Floats
from hgsl.search.encoder import Encoder
from hgsl.search.stores.protocol import ImageFile, ImageRow, Update

Item = Floats | str


def embed_images(
    images: list[ImageRow],
    root: Path | str,
    encoder: Encoder,
    update: Update,
    batch_size: int,
    workers: int,
    progress: bool,
) -> dict[ImageFile, str]:
    """Embeds image files and adds them to the index, batch by batch.

    Returns:
        Image file -> why it could not be embedded.
    """
    dataset = _TransformedImages(root, [image.file for image in images], encoder.transform)
    options: Any = {"num_workers": workers, "collate_fn": list, "worker_init_fn": init_worker}
    loader: Any = DataLoader(dataset, batch_size=batch_size, **options) if images else ()
    broken: dict[ImageFile, str] = {}
    start = 0
    try:
        with tqdm(total=len(images), desc="indexing", unit="image", disable=None if progress else True) as bar:
            for items in loader:
                batch = images[start : start + len(items)]
                start += len(items)
                broken |= _embed_batch(batch, items, encoder, update)
                bar.update(len(items))
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise InputError(
            "a process that loads images was killed, perhaps for lack of memory: run the command again, with fewer "
            "--workers"
        ) from None
    finally:
        update.flush()  # also after Ctrl-C
    return broken


def _embed_batch(batch: list[ImageRow], items: list[Item], encoder: Encoder, update: Update) -> dict[ImageFile, str]:
    """Embeds the arrays among ``items``; returns image file -> why it has no usable vector."""
    broken = {row.file: item for row, item in zip(batch, items, strict=True) if isinstance(item, str)}
    readable = [(row, item) for row, item in zip(batch, items, strict=True) if not isinstance(item, str)]
    if not readable:
        return broken
    vectors = encoder.vectors([torch.from_numpy(array) for _, array in readable])
    usable = np.isfinite(vectors).all(axis=1) & (vectors != 0).any(axis=1)
    for (row, _), is_usable in zip(readable, usable, strict=True):
        if not is_usable:
            broken[row.file] = "the model returns no finite vector"
    update.upsert([row for (row, _), is_usable in zip(readable, usable, strict=True) if is_usable], vectors[usable])
    return broken


class _TransformedImages(Dataset[Item]):
    """``dataset[i]`` is image i as the model expects it, (3, S, S), or the reason why it cannot be read.

    Images are arrays: tensors are shared through file descriptors, and a loader process whose parent has exited prints
    errors about them.
    """

    def __init__(self, root: Path | str, images: list[ImageFile], transform: Transform) -> None:
        self.root, self.images, self.transform = root, images, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Item:
        location = locate(self.root, self.images[index].path)
        try:
            return self.transform(read_image(location, self.transform.resize.side)).numpy()
        except Exception as error:  # no single file may end the run; it is reported with the reason
            return _reason(error, location)


def _reason(error: Exception, location: Path | str) -> str:
    """Why an image cannot be read, in a line without its path."""
    if isinstance(error, MemoryError):
        return "not enough memory"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    reason = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
    for prefix in (f"cannot read image {location}: ", f"cannot read {location}: "):
        reason = reason.removeprefix(prefix)
    return " ".join(reason.split("(replace the file")[0].split())
