"""Embedding of image files in batches; unreadable files are reported and skipped."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from hgsl.common.errors import InputError
from hgsl.common.images import read_image
from hgsl.common.transforms import Transform
from hgsl.common.workers import init_worker
from hgsl.evaluation.knn.vectors import Floats
from hgsl.search.encoder import Encoder
from hgsl.search.storage.layout import ImageFile
from hgsl.search.storage.pending import PendingEmbeddings

Item = Floats | str


def embed_images(
    images: list[ImageFile],
    root: Path,
    encoder: Encoder,
    pending: PendingEmbeddings,
    batch_size: int,
    workers: int,
    progress: bool,
) -> dict[ImageFile, str]:
    """Embeds image files into ``pending``, batch by batch.

    Returns:
        Image file -> why it could not be embedded.
    """
    dataset = _TransformedImages(root, images, encoder.transform)
    options: Any = {"num_workers": workers, "collate_fn": list, "worker_init_fn": init_worker}
    loader: Any = DataLoader(dataset, batch_size=batch_size, **options) if images else ()
    broken: dict[ImageFile, str] = {}
    start = 0
    try:
        with tqdm(total=len(images), desc="indexing", unit="image", disable=None if progress else True) as bar:
            for items in loader:
                batch = images[start : start + len(items)]
                start += len(items)
                broken |= _embed_batch(batch, items, encoder, pending)
                bar.update(len(items))
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise InputError(
            "a process that loads images was killed, perhaps for lack of memory: run the command again, with fewer "
            "--workers"
        ) from None
    finally:
        pending.flush()  # also after Ctrl-C
    return broken


def _embed_batch(
    batch: list[ImageFile], items: list[Item], encoder: Encoder, pending: PendingEmbeddings
) -> dict[ImageFile, str]:
    """Embeds the arrays among ``items``; returns image file -> why it has no usable vector."""
    broken = {image: item for image, item in zip(batch, items, strict=True) if isinstance(item, str)}
    readable = [(image, item) for image, item in zip(batch, items, strict=True) if not isinstance(item, str)]
    if not readable:
        return broken
    vectors = encoder.vectors([torch.from_numpy(array) for _, array in readable])
    usable = np.isfinite(vectors).all(axis=1) & (vectors != 0).any(axis=1)
    for (image, _), is_usable in zip(readable, usable, strict=True):
        if not is_usable:
            broken[image] = "the model returns no finite vector"
    pending.add([image for (image, _), is_usable in zip(readable, usable, strict=True) if is_usable], vectors[usable])
    return broken


class _TransformedImages(Dataset[Item]):
    """``dataset[i]`` is image i as the model expects it, (3, S, S), or the reason why it cannot be read.

    Images are arrays: tensors are shared through file descriptors, and a loader process whose parent has exited prints
    errors about them.
    """

    def __init__(self, root: Path, images: list[ImageFile], transform: Transform) -> None:
        self.root, self.images, self.transform = root, images, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Item:
        path = self.root / self.images[index].path
        try:
            return self.transform(read_image(path, self.transform.resize.side)).numpy()
        except Exception as error:  # no single file may end the run; it is reported with the reason
            reason = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
            return " ".join(reason.removeprefix(f"cannot read image {path}: ").split("(replace the file")[0].split())
