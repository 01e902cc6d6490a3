"""Duplicate images of a data set: equal files, equal perceptual hashes and similar embeddings, in groups."""

import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch.utils.data import Dataset

from hgsl.common.device import pick_device
from hgsl.common.errors import InputError
from hgsl.data import Manifest, RetrievalDataset
from hgsl.data.audit import inspect_images
from hgsl.data.changes import preferred
from hgsl.data.duplicates import exact_duplicates, group_pairs, near_duplicates
from hgsl.engine.evaluation.files import search_device
from hgsl.engine.loop.loader import default_workers
from hgsl.evaluation import embed
from hgsl.evaluation.copies import CopyThreshold, calibrate_copies, nearest_images, similar_pairs
from hgsl.evaluation.knn.vectors import Floats, Ints
from hgsl.evaluation.show.duplicates import DuplicatePage, ImageGroup, write_duplicate_page
from hgsl.evaluation.show.pictures import missing_picture
from hgsl.models import Embedder, create_embedder

BACKBONE, WEIGHTS, IMAGE_SIZE = "tf_efficientnet_lite0", "packaged", 160  # needs no network
PICTURE_SIDE = 224
SAMPLE = 128  # images of which altered copies are made


def _recompressed(image: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    image.resize((max(1, image.width * 3 // 4), max(1, image.height * 3 // 4))).save(buffer, "JPEG", quality=60)
    return Image.open(buffer).convert("RGB")


def _cropped(image: Image.Image) -> Image.Image:
    return image.crop((image.width // 20, image.height // 20, image.width, image.height))


# Alterations of the copies that a threshold is calibrated on; a perceptual hash misses the crop and the mirror image.
ALTERATIONS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "smaller and recompressed": _recompressed,
    "cropped by 5%": _cropped,
    "mirrored": ImageOps.mirror,
    "brighter by 20%": lambda image: ImageEnhance.Brightness(image).enhance(1.2),
}


class DuplicatePair(NamedTuple):
    """Two rows that show the same image; the cosine similarity is None for pairs that were not found by it."""

    one: int
    other: int
    reason: str
    similarity: float | None = None


@dataclass(frozen=True)
class Duplicates:
    """Duplicates of a manifest.

    Attributes:
        manifest: The rows.
        pairs: Each pair once: by equal files, by perceptual hash, by embedding.
        threshold: The similarity from which embeddings count as near duplicates.
    """

    manifest: Manifest
    pairs: list[DuplicatePair]
    threshold: CopyThreshold

    @property
    def groups(self) -> list[list[int]]:
        """Groups of rows, first those across splits, then those of several classes, then the others."""

        def order(rows: list[int]) -> tuple[bool, bool]:
            return not self.is_across(rows), len(np.unique(self.manifest.labels[rows])) == 1

        return sorted(group_pairs((pair.one, pair.other) for pair in self.pairs), key=order)

    def is_across(self, rows: list[int]) -> bool:
        """Whether the rows lie in more than one split."""
        return len(np.unique(self.manifest.split[rows])) > 1

    def summary(self) -> str:
        """Counts of groups and pairs, and what the threshold accepts."""
        groups, threshold = self.groups, self.threshold
        across = sum(map(self.is_across, groups))
        mixed = sum(len(np.unique(self.manifest.labels[rows])) > 1 for rows in groups)
        reasons = [pair.reason for pair in self.pairs]
        counts = ", ".join(f"{reasons.count(reason):,} by {reason}" for reason in dict.fromkeys(reasons))
        return (
            f"{len(groups):,} groups of duplicates, {sum(map(len, groups)):,} images: {across:,} across splits, "
            f"{mixed:,} of several classes\n"
            f"  pairs: {counts or 'none'}\n"
            f"  similarity {threshold.value:.3f} or more is a near duplicate: {100 * threshold.recall:.1f}% of altered "
            f"copies reach it, and {100 * threshold.confused:.1f}% of the images with an image of another class"
        )


def find_duplicates(
    manifest: Manifest, *, similarity: float | None = None, device: str = "auto", progress: bool = True
) -> Duplicates:
    """Finds duplicates by the bytes of the files, by perceptual hash, and by the embedding of a pretrained network.

    Images that cannot be read, and images of a single color, are left out.

    Args:
        manifest: The rows.
        similarity: Cosine similarity of near duplicates; None calibrates it on altered copies of the images.
        device: Device of the network.
        progress: Whether to show progress bars on stderr, if that is a terminal.

    Raises:
        InputError: No image can be read, or the images are rendered.
    """
    inspections = inspect_images(manifest)
    same = exact_duplicates([inspection.digest for inspection in inspections])
    near = near_duplicates([inspection.image_hash for inspection in inspections], same)
    copies = {other for _, other in same}
    usable = np.array(
        [row for row, inspection in enumerate(inspections) if inspection.image_hash and row not in copies], np.int64
    )
    pairs = [DuplicatePair(*pair, "equal files") for pair in same]
    pairs += [DuplicatePair(*pair, "perceptual hash") for pair in near]
    if len(usable) < 2:
        return Duplicates(manifest, pairs, CopyThreshold(1.0, 0.0, 0.0))
    embeddings, copy_scores = _embed(manifest.take(usable), pick_device(device), progress)
    neighbors = nearest_images(embeddings, device=search_device(device))
    threshold = calibrate_copies(copy_scores, neighbors, manifest.labels[usable], similarity)
    known = set(near)
    for (one, other), score in zip(*similar_pairs(neighbors, threshold.value), strict=True):
        rows = int(usable[one]), int(usable[other])
        if rows not in known:
            pairs.append(DuplicatePair(*rows, "embedding", float(score)))
    return Duplicates(manifest, pairs, threshold)


def _embed(manifest: Manifest, device: torch.device, progress: bool) -> tuple[Floats, Floats]:
    """Embeddings (N, D) of the images, and similarities (M,) of altered copies of some to their originals."""
    model = create_embedder(BACKBONE, "avg", None, WEIGHTS, image_size=IMAGE_SIZE)
    options: Any = {"device": device, "num_workers": default_workers(), "progress": progress}
    embeddings = embed(model, RetrievalDataset(manifest, model.transform()), **options).embeddings
    rows = np.unique(np.linspace(0, len(manifest) - 1, SAMPLE).astype(int))
    altered = embed(model, _AlteredCopies(manifest, rows, model), **options)
    return embeddings, np.einsum("md,md->m", altered.embeddings, embeddings[altered.ids])


class _AlteredCopies(Dataset[Any]):
    """Each alteration of some rows of a manifest: (tensor, 0, row)."""

    def __init__(self, manifest: Manifest, rows: Ints, model: Embedder) -> None:
        self.images = RetrievalDataset(manifest)
        self.copies = [(int(row), name) for row in rows for name in ALTERATIONS]
        self.transform = model.transform()

    def __len__(self) -> int:
        return len(self.copies)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int, int]:
        row, name = self.copies[index]
        return self.transform(ALTERATIONS[name](self.images.image(row, 2 * IMAGE_SIZE))), 0, row


def write_duplicates(duplicates: Duplicates, path: str | os.PathLike[str]) -> None:
    """Writes a page that shows every group, and in which a person can mark its images."""
    manifest = duplicates.manifest
    images = RetrievalDataset(manifest)
    groups = [
        ImageGroup(tuple(rows), preferred(manifest, rows), duplicates.is_across(rows)) for rows in duplicates.groups
    ]
    page = DuplicatePage(
        title=f"Duplicates in {manifest.root}",
        key=manifest.split_hash,
        notes=duplicates.summary().splitlines(),
        paths=manifest.paths,
        labels=manifest.labels.tolist(),
        class_names=manifest.class_names,
        splits=manifest.split.tolist(),
        load_image=partial(_load, images),
    )
    write_duplicate_page(path, groups, duplicates.pairs, page)


def _load(images: RetrievalDataset, row: int) -> Image.Image:
    try:
        return images.image(row, PICTURE_SIDE)
    except InputError:  # equal files are duplicates also where they are no images
        return missing_picture(PICTURE_SIDE)
