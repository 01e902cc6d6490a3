"""Adapter of tables: ``img_path,label``, or ``path,label[,split,is_query,is_gallery,category,x_1,y_1,x_2,y_2]``."""

from collections.abc import Sequence
from pathlib import Path

from hgsl.common.errors import InputError
from hgsl.data.adapters.rows import image_folder, manifest_of_rows, split_of
from hgsl.data.adapters.table import ENCODING, Row, find_table, read_labels, read_rows
from hgsl.data.manifest import Manifest


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
        image_root: Folder, or address such as ``s3://bucket/images``, that paths are relative to; None for the table's
            own folder. A path may also be an address itself.
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
        splits = [split_of(row) for row in rows]
    else:
        other = read_rows(find_table(table.parent / test_list), encoding)
        splits = ["train"] * len(rows) + ["test"] * len(other)
        rows = [*rows, *other]
        _refuse_split_column(rows, test_list)
    labels, class_names = read_labels(rows)
    images = image_folder(image_root, table.parent)
    return manifest_of_rows("csv", images, rows, labels, class_names, splits, group_column)


def _refuse_split_column(rows: Sequence[Row], test_list: str | Path) -> None:
    table_with_split = next((row.table for row in rows if "split" in row), None)
    if table_with_split is not None:
        raise InputError(
            f"{table_with_split} has a column 'split', which contradicts the option "
            f"test_list {test_list}: leave one out"
        )
