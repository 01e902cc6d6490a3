"""Embeddings of image files and images by a model, in batches."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from hgsl.common.errors import InputError
from hgsl.common.images import DAMAGED, decode, read_image
from hgsl.common.modules import evaluation_mode
from hgsl.common.progress import progress_bar
from hgsl.common.transforms import Transform
from hgsl.common.whole_numbers import check_whole_number
from hgsl.common.workers import init_worker

if TYPE_CHECKING:
    from hgsl.models.embedder import Embedder

ImageInput = str | os.PathLike[str] | Image.Image
Item = Tensor | str  # (3, S, S), or why the image cannot be read


def encode(
    model: "Embedder",
    images: ImageInput | Sequence[ImageInput],
    batch_size: int = 64,
    *,
    workers: int = 0,
    progress: bool = True,
) -> NDArray[np.float32]:
    """Returns the embeddings of images, see :meth:`hgsl.models.Embedder.encode`."""
    several = [images] if isinstance(images, str | os.PathLike | Image.Image) else images
    _check(several, batch_size, workers)
    loader: Any = DataLoader(
        _Images(several, model.transform()),
        batch_size,
        num_workers=workers,
        collate_fn=list,
        worker_init_fn=init_worker,
        generator=torch.Generator(),  # the workers' seed is not drawn from the global generator
    )
    device = next(model.parameters()).device
    if model.prefers_channels_last(device):
        model.to(memory_format=torch.channels_last)  # as in an evaluation; the fastest
    vectors = np.empty((len(several), model.embedding_size), np.float32)
    start = 0
    with evaluation_mode(model), torch.inference_mode():
        for items in progress_bar(loader, shown=progress, desc="encoding", unit="batch"):
            vectors[start : start + len(items)] = model(_stack(items).to(device)).float().cpu().numpy()
            start += len(items)
    return vectors


def _check(images: object, batch_size: int, workers: int) -> None:
    if not isinstance(images, Sequence):
        raise InputError(f"images is of type {type(images).__name__}: expected a list of paths or PIL images")
    check_whole_number("batch_size", batch_size, 1)
    check_whole_number("workers", workers, 0)
    for number, image in enumerate(images):
        if not isinstance(image, str | os.PathLike | Image.Image):
            raise InputError(f"images[{number}] is of type {type(image).__name__}: expected a path or a PIL image")


def _stack(items: Sequence[Item]) -> Tensor:
    for item in items:
        if isinstance(item, str):
            raise InputError(item)
    return torch.stack([item for item in items if isinstance(item, Tensor)])


class _Images(Dataset[Item]):
    """``dataset[i]`` is image i as the model expects it, or the reason why it cannot be read."""

    def __init__(self, images: Sequence[ImageInput], transform: Transform) -> None:
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Item:
        image = self.images[index]
        try:
            if not isinstance(image, Image.Image):
                location = image if isinstance(image, str) else Path(image)
                return self.transform(read_image(location, self.transform.resize.side))
            return self.transform(decode(image))
        except DAMAGED as error:  # as a value: a loader process would return it with its traceback as the message
            return str(error) if not isinstance(image, Image.Image) else f"cannot decode images[{index}]: {error}"
