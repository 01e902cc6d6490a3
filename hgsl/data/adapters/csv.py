"""Adapter of tables: ``img_path,label``, or ``path,label[,split,is_query,is_gallery,category,x_1,y_1,x_2,y_2]``."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hgsl.common.errors import InputError, unknown
from hgsl.common.paths import relative_to_root
from hgsl.data.adapters.table import BOX_COLUMNS, ENCODING, Row, find_table, read_labels, read_rows
from hgsl.data.manifest import SPLIT_NAMES, Manifest, make_manifest, number_groups

TRUE, FALSE, EMPTY = ("true", "1", "1.0"), ("false", "0", "0.0"), ("", "none", "nan")


def load(
    root: Path,
    encoding: str = ENCODING,
    image_root: str | Path | None = None,
    test_list: str | Path | None = None,
    group_column: str | None = None,
) -> Manifest:
    """Reads a table with a header line; columns other than those above are ignored.

    Labels are text, see :func:`hgsl.data.adapters.table.read_labels`. Without a column ``split``, rows have no split,
    and zero-shot tests on the last classes in the order of their labels.

    Args:
        root: The table, or a folder with exactly one ``.csv`` file in it.
        encoding: Of the text, such as "utf-8" or "gbk".
        image_root: Folder that paths are relative to; None for the table's own folder.
        test_list: Second table, relative to the folder of the first; ``root`` is then the training split and this table
            the test split. Its columns may differ.
        group_column: Column whose equal values make a group, such as ``camera``; None for ``category``, if there is
            one. An empty value means no group. An evaluation can ignore the gallery images of a query's class and
            group.

    Raises:
        FileNotFoundError: There is no such table.
        InputError: A column is missing, the table is empty, or a value is invalid for its column; the message
            names the table, the line and the value.
    """
    table = find_table(root)
    rows = read_rows(table, encoding)
    if test_list is None:
        splits = [_split(row) for row in rows]
    else:
        other = read_rows(find_table(table.parent / test_list), encoding)
        splits = ["train"] * len(rows) + ["test"] * len(other)
        rows = [*rows, *other]
        _refuse_split_column(rows, test_list)
    labels, class_names = read_labels(rows)
    query = [_flag(row, "is_query", split) for row, split in zip(rows, splits, strict=True)]
    gallery = [_flag(row, "is_gallery", split) for row, split in zip(rows, splits, strict=True)]
    images = table.parent if image_root is None else Path(image_root).expanduser()
    return make_manifest(
        "csv",
        images,
        [relative_to_root(row.path, images) for row in rows],
        labels,
        class_names,
        protocol="" if not any(splits) else "zero-shot" if query == gallery else "query-gallery",
        split=splits,
        is_query=query,
        is_gallery=gallery,
        boxes=_boxes(rows),
        groups=_groups(rows, group_column),
        locate=lambda row: str(rows[row]),
    )


def _split(row: Row) -> str:
    if "split" not in row:
        return ""
    split = SPLIT_NAMES.get(row["split"].strip().lower())
    if split is None:
        raise InputError(f"{row}: the split {row['split']!r} is none of {', '.join(SPLIT_NAMES)}")
    return split


def _refuse_split_column(rows: Sequence[Row], test_list: str | Path) -> None:
    table_with_split = next((row.table for row in rows if "split" in row), None)
    if table_with_split is not None:
        raise InputError(
            f"{table_with_split} has a column 'split', which contradicts the option "
            f"test_list {test_list}: leave one out"
        )


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


def _groups(rows: Sequence[Row], column: str | None) -> np.ndarray | None:
    if column is not None:
        row_without = next((row for row in rows if column not in row), None)
        if row_without is not None:
            raise unknown(f"group_column of {row_without.table}", column, row_without.values)
    column = column or "category"
    if not any(column in row for row in rows):
        return None
    return number_groups([row[column].strip() or None if column in row else None for row in rows])
