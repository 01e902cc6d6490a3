"""Rows of a table as a manifest: paths and addresses, splits, query and gallery flags, boxes and groups."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from numpy.typing import ArrayLike

from hgsl.common.errors import InputError, unknown
from hgsl.common.paths import is_uri, public_uri, relative_to_root
from hgsl.common.remote import check_root_uri, check_uri
from hgsl.data.adapters.table import BOX_COLUMNS, Row
from hgsl.data.build_manifest import make_manifest, number_groups
from hgsl.data.files.parquet_images import ParquetImages
from hgsl.data.manifest import SPLIT_NAMES, Manifest

TRUE, FALSE, EMPTY = ("true", "1", "1.0"), ("false", "0", "0.0"), ("", "none", "nan")


def manifest_of_rows(
    name: str,
    root: Path | str,
    rows: Sequence[Row],
    labels: ArrayLike,
    class_names: Sequence[str],
    splits: Sequence[str],
    group_column: str | None = None,
    *,
    content: ParquetImages | None = None,
    paths: Sequence[str] | None = None,
    skipped: Sequence[tuple[str, str]] = (),
    notes: Sequence[str] = (),
) -> Manifest:
    """Builds the manifest of rows with the columns of :mod:`hgsl.data.adapters.csv`.

    Args:
        name: The data set.
        root: Folder or address that paths are relative to.
        rows: Its images.
        labels, class_names, content, skipped, notes: See :class:`hgsl.data.manifest.Manifest`.
        paths: Of the rows whose images are ``content``, in place of those in their columns.
        splits: Of each row; all are empty where the source has none.
        group_column: See :func:`hgsl.data.adapters.csv.load`.

    Raises:
        InputError: A value is invalid for its column; the message names the table, the line and the value.
    """
    query = [_flag(row, "is_query", split) for row, split in zip(rows, splits, strict=True)]
    gallery = [_flag(row, "is_gallery", split) for row, split in zip(rows, splits, strict=True)]
    groups = _groups(rows, group_column)
    paths, addresses = read_paths(rows, root) if paths is None else (paths, {})
    return make_manifest(
        name,
        root,
        paths,
        labels,
        class_names,
        protocol="" if not any(splits) else "zero-shot" if query == gallery else "query-gallery",
        split=list(splits),
        is_query=query,
        is_gallery=gallery,
        boxes=_boxes(rows),
        groups=None if groups is None else number_groups(groups),
        group_names=None if groups is None else sorted({name for name in groups if name is not None}),
        skipped=skipped,
        notes=notes,
        content=content,
        addresses=addresses,
        locate=lambda row: str(rows[row]),
    )


def image_folder(image_root: str | Path | None, default: Path) -> Path | str:
    """The folder or the address that the option ``image_root`` names.

    Raises:
        InputError: The address cannot be read, or holds a password or a token.
    """
    if is_uri(image_root):
        check_root_uri("image_root", str(image_root))
        return str(image_root)
    return default if image_root is None else Path(image_root).expanduser()


def read_paths(rows: Sequence[Row], root: Path | str) -> tuple[list[str], Mapping[str, str]]:
    """The path of each row, and the full address of each path that is an address without its password or token.

    Raises:
        InputError: An address cannot be read with the installed packages; the message names the line.
    """
    paths, addresses = [relative_to_root(row.path, root) for row in rows], {}
    for number, (row, path) in enumerate(zip(rows, paths, strict=True)):
        if is_uri(path):
            try:
                check_uri(path)
            except InputError as error:
                raise InputError(f"{row}: {error}") from None
            paths[number] = public_uri(path)
            if paths[number] != path:
                addresses[paths[number]] = path
    return paths, addresses


def with_protocol(manifest: Manifest) -> Manifest:
    """Makes a split closed-set where a class is in two of its parts."""
    pairs = set(zip(manifest.labels.tolist(), manifest.split.tolist(), strict=True))
    is_shared = len(pairs) > len({label for label, _ in pairs})
    return replace(manifest, protocol="closed-set") if manifest.protocol == "zero-shot" and is_shared else manifest


def split_of(row: Row) -> str:
    """The split in the column ``split``; empty without such a column.

    Raises:
        InputError: It is not a name of a split.
    """
    if "split" not in row:
        return ""
    split = SPLIT_NAMES.get(row["split"].strip().lower())
    if split is None:
        raise InputError(f"{row}: the split {row['split']!r} is none of {', '.join(SPLIT_NAMES)}")
    return split


def _flag(row: Row, column: str, split: str) -> bool:
    """A boolean value; it is true for training rows, which may leave it empty."""
    if column not in row:
        return True
    value, training = row[column].strip().lower(), split == "train"
    if value not in TRUE + FALSE + (EMPTY if training else ()):
        raise InputError(f"{row}: {column} is {row[column]!r}, expected True or False")
    return value in TRUE or training


def _boxes(rows: Sequence[Row]) -> list[list[float]] | None:
    with_box, without = (
        next((row.table for row in rows if all(column in row for column in BOX_COLUMNS) is boxed), None)
        for boxed in (True, False)
    )
    if with_box and without:
        raise InputError(
            f"{without} lacks one of the columns {', '.join(BOX_COLUMNS)}, which {with_box} has: "
            "give boxes in both tables or in neither"
        )
    return [_box(row) for row in rows] if with_box else None


def _box(row: Row) -> list[float]:
    values = [row[column] for column in BOX_COLUMNS]
    try:
        return [float(value) for value in values]
    except ValueError:
        raise InputError(f"{row}: the box {', '.join(values)} is not four numbers") from None


def _groups(rows: Sequence[Row], column: str | None) -> list[str | None] | None:
    """The group of each row, None for a row without one; None if there is no such column."""
    if column is not None:
        row_without = next((row for row in rows if column not in row), None)
        if row_without is not None:
            raise unknown(f"group_column of {row_without.table}", column, row_without.values)
    column = column or "category"
    if not any(column in row for row in rows):
        return None
    return [row[column].strip() or None if column in row else None for row in rows]
