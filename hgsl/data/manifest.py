"""Manifest: the table with one row per image to which every data set is converted."""

from __future__ import annotations  # so that help() shows the names of long types

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hgsl.common.errors import InputError, unknown
from hgsl.common.locations import Location
from hgsl.common.locations import locate as locate_path
from hgsl.data.files.parquet_images import ParquetImage, ParquetImages

SPLITS = ("train", "val", "test")
# Names of splits in folders and tables, matched case-insensitively.
SPLIT_NAMES = {name: name for name in SPLITS} | {
    "training": "train",
    "valid": "val",
    "validation": "val",
    "testing": "test",
}


@dataclass(frozen=True)
class Manifest:
    """The N rows of a data set, or of some of its splits. :func:`hgsl.data.build_manifest.make_manifest` builds one.

    Attributes:
        name: The data set's name, as in ``DATASETS``.
        protocol: Meaning of ``split``: "zero-shot", "closed-set", "query-gallery", or "" for rows without a split.
        root: Folder that ``paths`` are relative to, or an address such as ``s3://bucket/images``.
        paths: N relative POSIX paths, or addresses.
        labels: (N,) int64, an index into ``class_names``.
        class_names: One name per class.
        split: (N,) str, "train", "val" or "test" ("" for rows without a split).
        is_query: (N,) bool, whether the row is a query when its split is evaluated.
        is_gallery: (N,) bool, whether the row is in the gallery when its split is evaluated.
        ids: (N,) int64, the row's number in the full manifest; a subset keeps it.
        boxes: (N, 4) float64 x1 y1 x2 y2 in pixels, x2 and y2 exclusive, or None.
        groups: (N,) int64, such as the number of a camera or of a coarser category, or None. Every number is a group; a
            row without a group has a number of its own.
        group_names: Names of the groups 0..G-1, or None where they have none; a larger number is a row without group.
        crop_to_boxes: Whether an image is cropped to its box when it is read.
        skipped: (path, reason) of each file or folder that is not in the manifest.
        notes: Notes to be printed in every report, such as "cropped to boxes".
        render: Draws the image of a row id, for data sets without files.
        content: The encoded images of the row ids, for data sets of Parquet files.
        addresses: The full address of each path that is an address without its password or token.
    """

    name: str
    protocol: str
    root: Path | str
    paths: tuple[str, ...]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    split: NDArray[np.str_]
    is_query: NDArray[np.bool_]
    is_gallery: NDArray[np.bool_]
    ids: NDArray[np.int64]
    boxes: NDArray[np.float64] | None = None
    groups: NDArray[np.int64] | None = None
    group_names: tuple[str, ...] | None = None
    crop_to_boxes: bool = False
    skipped: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    render: Callable[[int], Image.Image] | None = None
    content: ParquetImages | None = None
    addresses: Mapping[str, str] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def split_hash(self) -> str:
        """The first 16 hex digits of a SHA-256 over every row: path, class, split, query and gallery flags, crop box.

        Equal hashes mean the same images in the same roles under the same protocol; the machine, the root and the name
        of the data set are not part of it. Reports carry the hash of the split that is evaluated,
        ``manifest.subset("test").split_hash``; the hash of a full manifest covers all of its splits.
        """
        digest = hashlib.sha256(f"{self.protocol}\n".encode())
        for i, path in enumerate(self.paths):
            box = self.boxes[i].tolist() if self.boxes is not None and self.crop_to_boxes else ""
            flags = f"{int(self.is_query[i])}{int(self.is_gallery[i])}"
            row = (path, self.class_names[self.labels[i]], str(self.split[i]), flags, str(box))
            digest.update(("\0".join(row) + "\n").encode())
        return digest.hexdigest()[:16]

    def location(self, row: int) -> Location:
        """Where the image of a row is read from."""
        path = self.paths[row]
        if self.content is not None:
            return ParquetImage(self.content, int(self.ids[row]), path)
        return locate_path(self.root, self.addresses.get(path, path))

    def subset(self, split: str) -> Manifest:
        """The rows of one split, or every row for "all"; ids, labels and class names stay those of the full manifest.

        Raises:
            InputError: The split is unknown, or has no rows.
        """
        if split == "all":
            return self
        if split not in SPLITS:
            raise unknown("split", split, (*SPLITS, "all"))
        rows = np.flatnonzero(self.split == split)
        if not len(rows):
            present = ", ".join(name for name in SPLITS if np.any(self.split == name)) or "images without a split"
            hint = (
                ": set data.val_share (such as 0.2) or data.val_fold to take some from train" if split == "val" else ""
            )
            raise InputError(
                f"{self.name} ({self.protocol or 'no protocol'}) has no {split!r} images, only {present}{hint}"
            )
        return self.take(rows)

    @property
    def categories(self) -> dict[int, str]:
        """Id of a row -> name of its group, of the rows that have one."""
        if self.groups is None:
            return {}
        names = self.group_names
        pairs = zip(self.ids.tolist(), self.groups.tolist(), strict=True)
        if names is None:
            return {row: str(group) for row, group in pairs}
        return {row: names[group] for row, group in pairs if group < len(names)}

    def take(self, rows: NDArray[np.int64]) -> Manifest:
        """The rows at these positions, in this order."""
        return replace(
            self,
            paths=tuple(self.paths[i] for i in rows),
            labels=self.labels[rows],
            split=self.split[rows],
            is_query=self.is_query[rows],
            is_gallery=self.is_gallery[rows],
            ids=self.ids[rows],
            boxes=None if self.boxes is None else self.boxes[rows],
            groups=None if self.groups is None else self.groups[rows],
        )
