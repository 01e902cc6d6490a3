"""Embedding of image files in batches; unreadable files are reported and skipped."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from hgsl.common.errors import InputError
from hgsl.common.images import read_image
from hgsl.common.locations import locate
from hgsl.common.progress import progress_bar
from hgsl.common.transforms import Transform
from hgsl.common.workers import init_worker, named_worker_errors
from hgsl.evaluation.knn.vectors import Floats
from hgsl.search.encoder import Encoder
from hgsl.search.stores.protocol import ImageFile, ImageRow, Update

WORKER_ADVICE = "run the command again, with fewer --workers"

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
    dataset = TransformedImages(root, [image.file for image in images], encoder.transform)
    options: Any = {"num_workers": workers, "collate_fn": list, "worker_init_fn": init_worker}
    loader: Any = DataLoader(dataset, batch_size=batch_size, **options) if images else ()
    broken: dict[ImageFile, str] = {}
    start = 0
    try:
        with (
            named_worker_errors(WORKER_ADVICE),
            progress_bar(shown=progress, log_lines=True, total=len(images), desc="indexing", unit="image") as bar,
        ):
            for items in loader:
                batch = images[start : start + len(items)]
                start += len(items)
                result = embed_batch([row.file for row in batch], items, encoder)
                update.upsert([batch[position] for position in result.positions], result.vectors)
                broken |= result.broken
                bar.update(len(items))
    finally:
        update.flush()  # also after Ctrl-C
    return broken


class BatchResult(NamedTuple):
    """Vectors of a batch: the positions of its images that have one, the vectors (B, D), and why others have none."""

    positions: list[int]
    vectors: Floats
    broken: dict[ImageFile, str]


def embed_batch(files: Sequence[ImageFile], items: Sequence[Item], encoder: Encoder) -> BatchResult:
    """Embeds those images of a batch that could be read.

    Args:
        files: Of the batch.
        items: The images, or why they cannot be read.
        encoder: The model.
    """
    broken = {file: item for file, item in zip(files, items, strict=True) if isinstance(item, str)}
    readable = [position for position, item in enumerate(items) if not isinstance(item, str)]
    if not readable:
        return BatchResult([], np.empty((0, encoder.dimensions), np.float32), broken)
    vectors = encoder.vectors([torch.from_numpy(items[position]) for position in readable])
    usable = np.isfinite(vectors).all(axis=1) & (vectors != 0).any(axis=1)
    broken |= {files[readable[row]]: "the model returns no finite vector" for row in np.flatnonzero(~usable)}
    return BatchResult([readable[row] for row in np.flatnonzero(usable)], vectors[usable], broken)


class TransformedImages(Dataset[Item]):
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
    reason = reason.replace(f" {str(location)!r}", "")
    return " ".join(reason.split())
