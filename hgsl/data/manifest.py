"""One row an image: the table every data set becomes; it is checked once, and nothing after asks where it came from."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from hgsl.common.errors import InputError, unknown
from hgsl.common.paths import is_inside

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Manifest:
    """The rows of a data set, N of them. Build one with :func:`make_manifest`, which checks it.

    Attributes:
        name: The data set's name, as in ``DATASETS``.
        protocol: What ``split`` stands for: "zero-shot", "closed-set", "query-gallery", or "" while rows have no split.
        root: The folder that ``paths`` are relative to.
        paths: N relative POSIX paths.
        labels: (N,) int64, an index into ``class_names``.
        class_names: One name a class.
        split: (N,) str, "train", "val" or "test" ("" while rows have no split).
        is_query: (N,) bool, whether the row asks when its split is evaluated.
        is_gallery: (N,) bool, whether the row is searched when its split is evaluated.
        ids: (N,) int64, the row's number in the full manifest; a subset keeps it.
        boxes: (N, 4) float64 x1 y1 x2 y2 in pixels, x2 and y2 exclusive, or None.
        groups: (N,) int64, such as a camera or a coarser category, or None.
        crop_to_boxes: Whether an image is cut to its box when it is read.
        skipped: (path, reason) of what was found and not taken.
        notes: Sentences that a report must carry, such as "cropped to boxes".
        render: Makes the image of a row id, for data sets that have no files.
    """

    name: str
    protocol: str
    root: Path
    paths: tuple[str, ...]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    split: NDArray[np.str_]
    is_query: NDArray[np.bool_]
    is_gallery: NDArray[np.bool_]
    ids: NDArray[np.int64]
    boxes: NDArray[np.float64] | None = None
    groups: NDArray[np.int64] | None = None
    crop_to_boxes: bool = False
    skipped: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    render: Callable[[int], Image.Image] | None = None

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def split_hash(self) -> str:
        """The first 16 hex digits of a SHA-256 over every row: path, class, split, query and gallery flags, cut box.

        Equal hashes mean that the same images played the same part under the same protocol; the machine, the root and
        the name of the data set are left out.
        """
        digest = hashlib.sha256(f"{self.protocol}\n".encode())
        for i, path in enumerate(self.paths):
            box = self.boxes[i].tolist() if self.boxes is not None and self.crop_to_boxes else ""
            flags = f"{int(self.is_query[i])}{int(self.is_gallery[i])}"
            row = (path, self.class_names[self.labels[i]], str(self.split[i]), flags, str(box))
            digest.update(("\0".join(row) + "\n").encode())
        return digest.hexdigest()[:16]

    def subset(self, split: str) -> "Manifest":
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
            found = ", ".join(name for name in SPLITS if np.any(self.split == name)) or "no split at all"
            hint = "; set val_share or val_fold to cut one from the training classes" if split == "val" else ""
            raise InputError(
                f"{self.name} ({self.protocol or 'no protocol'}) has no {split!r} images, only {found}{hint}"
            )
        return self.take(rows)

    def take(self, rows: NDArray[np.int64]) -> "Manifest":
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


def make_manifest(
    name: str,
    root: Path,
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
    skipped: Sequence[tuple[str, str]] = (),
    notes: Sequence[str] = (),
    render: Callable[[int], Image.Image] | None = None,
) -> Manifest:
    """Builds a checked manifest; what is left out means no split, and every row both query and gallery.

    ``protocol`` names the protocol that the given ``split`` was made for by the source of the data.

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
        root=Path(root),
        paths=tuple(paths),
        labels=np.asarray(labels, np.int64),
        class_names=tuple(class_names),
        split=np.full(count, "", "<U5") if split is None else np.asarray(split, "<U5"),
        is_query=np.ones(count, bool) if is_query is None else np.asarray(is_query, bool),
        is_gallery=np.ones(count, bool) if is_gallery is None else np.asarray(is_gallery, bool),
        ids=np.arange(count),
        boxes=None if boxes is None else np.asarray(boxes, np.float64),
        groups=None if groups is None else np.asarray(groups, np.int64),
        skipped=tuple(skipped),
        notes=tuple(notes),
        render=render,
    )
    _check_columns(manifest)
    _check_paths(manifest)
    return manifest


def _check_columns(manifest: Manifest) -> None:
    count, classes = len(manifest), len(manifest.class_names)
    for column in ("labels", "split", "is_query", "is_gallery", "boxes", "groups"):
        values = getattr(manifest, column)
        if values is not None and len(values) != count:
            raise InputError(f"{manifest.name}: {len(values)} {column} for {count} images")
    wrong = np.flatnonzero((manifest.labels < 0) | (manifest.labels >= classes))
    if len(wrong):
        raise InputError(
            f"{manifest.name}: row {wrong[0]} ({manifest.paths[wrong[0]]}) has label {manifest.labels[wrong[0]]}, "
            f"outside 0..{classes - 1}: the list of classes and the list of labels do not belong together"
        )
    if manifest.boxes is not None:
        x1, y1, x2, y2 = manifest.boxes.T
        wrong = np.flatnonzero(~((x2 > x1) & (y2 > y1)))  # NaN counts as wrong
        if len(wrong):
            box = manifest.boxes[wrong[0]].tolist()
            raise InputError(
                f"{manifest.name}: row {wrong[0]} ({manifest.paths[wrong[0]]}) has a box without area: "
                f"x1, y1, x2, y2 = {box}"
            )


def _check_paths(manifest: Manifest) -> None:
    first: dict[tuple[Any, ...], int] = {}
    for row, path in enumerate(manifest.paths):
        if not is_inside(path):
            raise InputError(
                f"{manifest.name}: row {row} has the path {path!r}, which is not inside the data root: "
                "paths are relative to it and do not climb out"
            )
        box = () if manifest.boxes is None else manifest.boxes[row].tolist()
        other = first.setdefault((PurePosixPath(path).as_posix(), *box), row)
        if other != row:
            labels = [manifest.class_names[manifest.labels[i]] for i in (other, row)]
            what = (
                f"as {labels[0]!r} and as {labels[1]!r}" if labels[0] != labels[1] else f"both times as {labels[0]!r}"
            )
            raise InputError(
                f"{manifest.name}: {path} is listed twice, in rows {other} and {row}, {what}: keep one of them"
            )
