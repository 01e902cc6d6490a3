"""Manifest: the table with one row per image to which every data set is converted, checked when it is built."""

from __future__ import annotations  # so that help() shows the names of long types

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from hgsl.common.errors import InputError, unknown
from hgsl.common.locations import Location
from hgsl.common.locations import locate as locate_path
from hgsl.common.paths import is_inside, is_uri
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
    """The N rows of a data set, or of some of its splits. :func:`make_manifest` builds and checks one.

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


def number_groups(names: Sequence[str | None]) -> NDArray[np.int64]:
    """Group numbers of named groups; each row without a group (None) gets a number of its own.

    >>> number_groups(["left", None, "left", None]).tolist()
    [0, 1, 0, 2]
    """
    known = {name: number for number, name in enumerate(sorted({name for name in names if name is not None}))}
    unused = iter(range(len(known), len(known) + len(names)))
    return np.array([next(unused) if name is None else known[name] for name in names], np.int64)


def make_manifest(
    name: str,
    root: Path | str,
    paths: Sequence[str],
    labels: ArrayLike,
    class_names: Sequence[str],
    *,
    protocol: str = "",
    split: ArrayLike | None = None,
    is_query: ArrayLike | None = None,
    is_gallery: ArrayLike | None = None,
    boxes: ArrayLike | None = None,
    groups: ArrayLike | None = None,
    group_names: Sequence[str] | None = None,
    skipped: Sequence[tuple[str, str]] = (),
    notes: Sequence[str] = (),
    render: Callable[[int], Image.Image] | None = None,
    content: ParquetImages | None = None,
    addresses: Mapping[str, str] | None = None,
    locate: Callable[[int], str] | None = None,
) -> Manifest:
    """Builds a checked manifest; omitted columns mean no split, and every row both query and gallery.

    Args:
        name, root, paths, class_names, group_names, skipped, notes, render, content, addresses: See :class:`Manifest`.
        labels: (N,) integers, an index into ``class_names``.
        protocol: The protocol for which the source of the data defines ``split``.
        split, is_query, is_gallery, boxes, groups: (N,) or (N, 4) columns, see :class:`Manifest`.
        locate: Source of a row, for messages, such as "birds.csv, line 5"; None gives "row 3".

    Raises:
        InputError: No rows, columns of different lengths, a label without a class, a box without an area, a path that
            leaves the root, or one image (path and box) listed twice.
    """
    count = len(paths)
    if not count:
        raise InputError(f"{name}: no images found in {root}")
    manifest = Manifest(
        name=name,
        protocol=protocol,
        root=root if is_uri(root) else Path(root),
        paths=tuple(paths),
        labels=_integers(labels, "labels", name),
        class_names=tuple(class_names),
        split=np.full(count, "", "<U5") if split is None else np.asarray(split, str),
        is_query=np.ones(count, bool) if is_query is None else np.asarray(is_query, bool),
        is_gallery=np.ones(count, bool) if is_gallery is None else np.asarray(is_gallery, bool),
        ids=np.arange(count),
        boxes=None if boxes is None else np.asarray(boxes, np.float64),
        groups=None if groups is None else _integers(groups, "groups", name),
        group_names=None if group_names is None else tuple(group_names),
        skipped=tuple(skipped),
        notes=tuple(notes),
        render=render,
        content=content,
        addresses=addresses or {},
    )

    def source(row: int) -> str:
        return locate(row) if locate else f"row {row}"

    _check_columns(manifest, source)
    _check_paths(manifest, source)
    return manifest


def _integers(values: ArrayLike, column: str, name: str) -> NDArray[np.int64]:
    """A column as int64; unsigned 64-bit numbers wrap around, so that distinct ones stay distinct."""
    array = np.asarray(values)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise InputError(f"{name}: {column} must be one integer per image, found {array.dtype} of shape {array.shape}")
    return array.astype(np.int64)


def _check_columns(manifest: Manifest, source: Callable[[int], str]) -> None:
    count, classes = len(manifest), len(manifest.class_names)
    for column in ("labels", "split", "is_query", "is_gallery", "boxes", "groups"):
        values = getattr(manifest, column)
        if values is not None and len(values) != count:
            raise InputError(f"{manifest.name}: {len(values)} {column} for {count} images")
    unknown_splits = sorted(set(np.unique(manifest.split).tolist()) - {"", *SPLITS})
    if unknown_splits:
        raise InputError(f"{manifest.name}: the split {unknown_splits[0]!r} is none of {', '.join(SPLITS)}")
    wrong = np.flatnonzero((manifest.labels < 0) | (manifest.labels >= classes))
    if len(wrong):
        raise InputError(
            f"{manifest.name}: {source(wrong[0])} ({manifest.paths[wrong[0]]}) has label {manifest.labels[wrong[0]]}, "
            f"outside 0..{classes - 1}: the list of classes and the list of labels do not match"
        )
    if manifest.boxes is not None:
        if manifest.boxes.shape != (count, 4):
            raise InputError(f"{manifest.name}: boxes have the shape {manifest.boxes.shape}, expected ({count}, 4)")
        x1, y1, x2, y2 = manifest.boxes.T
        wrong = np.flatnonzero(~((x2 > x1) & (y2 > y1)))  # NaN counts as wrong
        if len(wrong):
            box = manifest.boxes[wrong[0]].tolist()
            raise InputError(
                f"{manifest.name}: {source(wrong[0])} ({manifest.paths[wrong[0]]}) has a box without area: "
                f"x1, y1, x2, y2 = {box}"
            )


def _check_paths(manifest: Manifest, source: Callable[[int], str]) -> None:
    first: dict[tuple[Any, ...], int] = {}
    for row, path in enumerate(manifest.paths):
        if not (is_uri(path) or is_inside(path)):
            raise InputError(
                f"{manifest.name}: {source(row)} has the path {path!r}, which is not inside the data root "
                f"{manifest.root}: a path must be relative to the data root and inside it"
            )
        box = () if manifest.boxes is None else manifest.boxes[row].tolist()
        other = first.setdefault((PurePosixPath(path).as_posix(), *box), row)
        if other != row:
            names = [manifest.class_names[manifest.labels[i]] for i in (other, row)]
            classes = f"as {names[0]!r} and as {names[1]!r}" if names[0] != names[1] else f"both times as {names[0]!r}"
            raise InputError(
                f"{manifest.name}: {path} is listed twice, in {source(other)} and {source(row)}, {classes}: "
                "keep one of them"
            )
