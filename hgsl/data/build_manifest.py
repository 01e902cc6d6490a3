"""Construction of a manifest from columns, which are checked."""

from __future__ import annotations  # so that help() shows the names of long types

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from hgsl.common.errors import InputError
from hgsl.common.paths import is_inside, is_uri
from hgsl.data.files.parquet_images import ParquetImages
from hgsl.data.manifest import SPLITS, Manifest


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


def number_groups(names: Sequence[str | None]) -> NDArray[np.int64]:
    """Group numbers of named groups; each row without a group (None) gets a number of its own.

    >>> number_groups(["left", None, "left", None]).tolist()
    [0, 1, 0, 2]
    """
    known = {name: number for number, name in enumerate(sorted({name for name in names if name is not None}))}
    unused = iter(range(len(known), len(known) + len(names)))
    return np.array([next(unused) if name is None else known[name] for name in names], np.int64)


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
