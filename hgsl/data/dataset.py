"""PyTorch ``Dataset`` of the images of a manifest."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from hgsl.common.errors import InputError
from hgsl.common.images import UnreadableImageError, check_shape, read_image, to_pixels
from hgsl.common.locations import name_of, remote_states
from hgsl.common.transforms import Transform
from hgsl.data.files.cache import cached, file_key
from hgsl.data.manifest import Manifest


class RetrievalDataset(Dataset[tuple[Any, int, int]]):
    """``dataset[i]`` is (image, label, id) of row i; an unreadable image is an error, never replaced by another row.

    Labels are contiguous, 0..C-1 over the classes that occur in this manifest; ids are row numbers in the full
    manifest, so that an image has the same id in every split and report.

    Args:
        manifest: The rows, usually one split: ``manifest.subset("train")``.
        transform: From an RGB image to a (3, H, W) tensor; None returns PIL images. A transform of
            ``train_transform`` or ``eval_transform`` also determines the scale at which a large JPEG is decoded.
        cache_dir: Folder for a cache of the resized images, so that only the first epoch decodes files; the tensors are
            the same. The cache takes 3 bytes per pixel. Files at addresses are listed once, to notice changed ones.
            None disables the cache.

    Attributes:
        manifest: The rows.
        labels: (N,) int64, contiguous.
        class_names: The names of these classes.
        num_classes: C.
        ids: (N,) int64.
    """

    def __init__(
        self,
        manifest: Manifest,
        transform: Callable[[Image.Image], Any] | None = None,
        cache_dir: Path | None = None,
    ) -> None:
        self.manifest = manifest
        self.transform = transform
        self.cache_dir = cache_dir
        classes, labels = np.unique(manifest.labels, return_inverse=True)
        self.labels = labels.astype(np.int64)
        self.class_names = tuple(manifest.class_names[i] for i in classes)
        self.num_classes = len(classes)
        self.ids = manifest.ids
        self._states = {} if cache_dir is None else remote_states(map(manifest.location, range(len(manifest))))

    def __repr__(self) -> str:
        manifest = self.manifest
        splits = " and ".join(name for name in dict.fromkeys(manifest.split.tolist()) if name) or "no split"
        transform = "PIL images" if self.transform is None else type(self.transform).__name__
        return (
            f"RetrievalDataset({manifest.name}, {splits}, {manifest.protocol or 'no protocol'}: {len(self):,} images "
            f"of {self.num_classes:,} classes, {transform}, split {manifest.split_hash}, root {str(manifest.root)!r})"
        )

    def __len__(self) -> int:
        return len(self.manifest)

    def __getitem__(self, index: int) -> tuple[Any, int, int]:
        image: Any
        if self.transform is None:
            image = self.image(index)
        elif isinstance(self.transform, Transform) and self.manifest.render is None:
            image = self.transform(self._resized(index, self.transform))
        else:
            image = self.transform(self.image(index))
        return image, int(self.labels[index]), int(self.ids[index])

    def image(self, index: int, min_side: int | None = None) -> Image.Image:
        """Row ``index`` as an upright RGB image, cropped to its box if ``crop_to_boxes`` is set.

        Args:
            index: The row.
            min_side: Shortest side that is enough, in pixels; see :func:`hgsl.common.images.read_image`.

        Raises:
            InputError: The file is missing or damaged, or its box lies outside it; the message names the file.
        """
        manifest = self.manifest
        if manifest.render is not None:
            return manifest.render(int(self.ids[index]))
        location, box = manifest.location(index), self._box(index)
        try:
            image = read_image(location, min_side if box is None else None)
        except UnreadableImageError as error:
            raise InputError(
                f"{error} (replace the file or remove it from the data; hgsl prepare {manifest.name} --root DIR "
                "--audit lists all such files, --data.broken skip leaves out those of the training split)"
            ) from None
        return image if box is None else crop(image, box, name_of(location))

    def _resized(self, index: int, transform: Transform) -> Tensor:
        def make() -> Tensor:
            return transform.resize(to_pixels(self.image(index, transform.resize.side)))

        if self.cache_dir is None:
            return make()
        box = self._box(index)
        location, settings = self.manifest.location(index), (transform.resize, None if box is None else box.tolist())
        return cached(self.cache_dir, file_key(location, *settings, states=self._states), make)

    def _box(self, index: int) -> np.ndarray | None:
        boxes = self.manifest.boxes
        return boxes[index] if boxes is not None and self.manifest.crop_to_boxes else None


def crop(image: Image.Image, box: np.ndarray, path: str) -> Image.Image:
    """The part of ``image`` inside ``box`` (x1, y1, x2, y2); the box may extend beyond the image.

    Raises:
        InputError: The crop is empty or of an extreme shape; the message names ``path``.
    """
    x1, y1 = np.floor(box[:2]).clip(0).astype(int).tolist()
    x2, y2 = np.ceil(box[2:]).clip(None, image.size).astype(int).tolist()
    if x2 <= x1 or y2 <= y1:
        raise InputError(f"the box {box.tolist()} of {path} lies outside the image of {image.width} x {image.height}")
    try:
        check_shape(x2 - x1, y2 - y1)
    except InputError as error:
        raise InputError(f"the box {box.tolist()} of {path}: {error}") from None
    return image.crop((x1, y1, x2, y2))
