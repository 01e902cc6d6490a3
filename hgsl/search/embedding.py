"""Runs the model over photos, a broken one among them or not, and keeps what is done."""

from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from hgsl.common.errors import InputError
from hgsl.common.transforms import Transform
from hgsl.common.workers import init_worker
from hgsl.data.files.images import read_image
from hgsl.search.encoder import Encoder
from hgsl.search.photos import Photo
from hgsl.search.unfinished import Unfinished


def embed_photos(
    photos: list[Photo],
    root: Path,
    encoder: Encoder,
    unfinished: Unfinished,
    batch_size: int,
    workers: int,
    progress: bool,
) -> None:
    """Embeds photos in batches; the vectors, and the reasons of broken ones, go to ``unfinished`` as they come."""
    dataset = _Photos(root, photos, encoder.transform)
    options: Any = {"num_workers": workers, "collate_fn": list, "worker_init_fn": init_worker}
    loader: Any = DataLoader(dataset, batch_size=batch_size, **options) if photos else ()
    start = 0
    try:
        with tqdm(total=len(photos), desc="indexing", unit="photo", disable=None if progress else True) as bar:
            for items in loader:
                batch = photos[start : start + len(items)]
                start += len(items)
                _embed_batch(batch, items, encoder, unfinished)
                bar.update(len(items))
    finally:
        unfinished.flush()  # also after Ctrl-C


def _embed_batch(batch: list[Photo], items: list[Tensor | str], encoder: Encoder, unfinished: Unfinished) -> None:
    broken = {photo: item for photo, item in zip(batch, items, strict=True) if isinstance(item, str)}
    read = [(photo, item) for photo, item in zip(batch, items, strict=True) if not isinstance(item, str)]
    vectors = encoder.vectors([item for _, item in read]) if read else np.empty((0, 0), np.float32)
    usable = np.isfinite(vectors).all(axis=1) & (vectors != 0).any(axis=1)
    broken |= {
        photo: "the model gives no finite vector" for (photo, _), fine in zip(read, usable, strict=True) if not fine
    }
    unfinished.add([photo for (photo, _), fine in zip(read, usable, strict=True) if fine], vectors[usable], broken)


class _Photos(Dataset[Tensor | str]):
    """``dataset[i]`` is photo i as the model wants it, or the reason why it cannot be read."""

    def __init__(self, root: Path, photos: list[Photo], transform: Transform) -> None:
        self.root, self.photos, self.transform = root, photos, transform

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, index: int) -> Tensor | str:
        path = self.root / self.photos[index].path
        try:
            return self.transform(read_image(path, self.transform.resize.side))
        except Exception as error:  # one odd file among a million must not end the run; it is named with its reason
            reason = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
            return " ".join(reason.removeprefix(f"cannot read image {path}: ").split("(replace the file")[0].split())
