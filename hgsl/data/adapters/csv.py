"""A table of images: ``img_path,label``, or ``path,label[,split,is_query,is_gallery,category,x_1,y_1,x_2,y_2]``."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hgsl.common.errors import InputError, nearest, unknown
from hgsl.common.files import atomic_path
from hgsl.common.paths import relative_to_root
from hgsl.data.manifest import Manifest, make_manifest

PATH_COLUMNS = ("img_path", "path")
BOX_COLUMNS = ("x_1", "y_1", "x_2", "y_2")
SPLIT_NAMES = {"train": "train", "val": "val", "validation": "val", "test": "test"}
MOST_DIGITS = 18  # of a label that is a number: it fits 64 bits
TRUE, FALSE, EMPTY = ("true", "1", "1.0"), ("false", "0", "0.0"), ("", "none", "nan")

Row = Mapping[str, str]


def load(
    root: Path,
    encoding: str = "utf-8-sig",
    image_root: str | Path | None = None,
    test_list: str | Path | None = None,
    group_column: str | None = None,
) -> Manifest:
    """Reads a table with a header line; other columns than those above are left alone.

    Labels are integers (from any number on) or names. Without a column ``split``, rows have no split, and zero-shot
    searches the last classes in the order of their labels. A table with ``validation`` rows but no ``test`` rows, as
    open-metric-learning writes them, means the former to be searched.

    Args:
        root: The table, or a folder with exactly one ``.csv`` file in it.
        encoding: Of the text, such as "utf-8" or "gbk".
        image_root: What paths are relative to; the table's own folder if None.
        test_list: A second table of the same form, for lists that come in pairs: ``root`` then trains and this is
            searched. Relative to the folder of the first.
        group_column: The column whose equal values make a group, such as ``camera``; None takes ``category``, if there
            is one. An evaluation can leave out the images of a query's class and group.

    Raises:
        FileNotFoundError: There is no such table.
        InputError: A column is missing, the table is empty, or a value is not what its column holds; the message
            names the table, the line and the value.
    """
    table = find_table(root)
    rows = read_rows(table, encoding)
    splits = [_split(row, table, line) for line, row in enumerate(rows, 2)]
    if test_list is not None:
        if any(splits):
            raise InputError(f"{table} has a column 'split', so test_list {test_list} has no place: leave one out")
        other = read_rows(find_table(table.parent / test_list), encoding)
        splits = ["train"] * len(rows) + ["test"] * len(other)
        rows = [*rows, *other]
    notes = []
    if "val" in splits and "test" not in splits:
        splits = ["test" if split == "val" else split for split in splits]
        notes.append("the table has no test rows, its validation rows are searched")
    labels, class_names = _labels(rows, table)
    test = [split != "train" for split in splits]
    query = _flags(rows, "is_query", table, test)
    gallery = _flags(rows, "is_gallery", table, test)
    column = next(name for name in PATH_COLUMNS if name in rows[0])
    images = table.parent if image_root is None else Path(image_root)
    return make_manifest(
        "csv",
        images,
        [relative_to_root(row[column], images) for row in rows],
        labels,
        class_names,
        protocol="" if not any(splits) else "zero-shot" if query == gallery else "query-gallery",
        split=splits,
        is_query=query,
        is_gallery=gallery,
        boxes=_boxes(rows, table),
        groups=_groups(rows, group_column, table),
        notes=notes,
    )


def find_table(root: Path) -> Path:
    """The table at ``root``: the file itself, or the only ``.csv`` file of the folder.

    Raises:
        FileNotFoundError: There is none.
        InputError: The folder has several.
    """
    if root.is_dir():
        tables = sorted(root.glob("*.csv"))
        if len(tables) > 1:
            names = ", ".join(table.name for table in tables)
            raise InputError(f"csv: {root} holds several tables ({names}): give the path of one")
        if tables:
            return tables[0]
    if not root.is_file():
        raise FileNotFoundError(f"csv: there is no table at {root}: give the path of a .csv file")
    return root


def read_rows(table: Path, encoding: str) -> list[dict[str, str]]:
    """The rows of a table as dicts, with the columns that every table needs.

    Raises:
        InputError: It cannot be decoded, has no rows or no such columns, or a row is of another length than the header.
    """
    try:
        with table.open(encoding=encoding, newline="") as file:
            reader = csv.DictReader(file, strict=True)
            rows = list(reader)
            columns = list(reader.fieldnames or [])
    except (UnicodeDecodeError, LookupError) as error:
        raise InputError(
            f"{table} is not {encoding} text ({error}): name its encoding, such as gbk or latin-1"
        ) from None
    except csv.Error as error:
        raise InputError(f"{table} is no comma-separated table: {error}") from None
    if len(set(columns) & set(PATH_COLUMNS)) == 2:
        raise InputError(f"{table} has both a column 'img_path' and a column 'path': keep one")
    for wanted in (PATH_COLUMNS, ("label",)):
        if not set(wanted) & set(columns):
            close = nearest(wanted[-1], columns)
            hint = f" (is it {close!r}?)" if close else ""
            missing = " or ".join(map(repr, wanted))
            raise InputError(f"{table} has no column {missing}{hint}: its columns are {', '.join(columns) or 'none'}")
    if not rows:
        raise InputError(f"{table} has a header but no rows")
    for line, row in enumerate(rows, 2):
        if None in row or None in row.values():
            raise InputError(f"{table}, line {line}: not {len(columns)} values, as the header has")
    return rows


def write_table(manifest: Manifest, file: str | Path) -> None:
    """Writes a manifest as a table that :func:`load` reads back to the same split, with ``image_root`` its root.

    Raises:
        OSError: The file cannot be written; nothing is left behind.
    """
    columns: dict[str, Any] = {
        "path": manifest.paths,
        "label": [manifest.class_names[label] for label in manifest.labels],
        "split": manifest.split,
        "is_query": manifest.is_query,
        "is_gallery": manifest.is_gallery,
    }
    if manifest.groups is not None:
        columns["category"] = manifest.groups
    if manifest.boxes is not None:
        columns |= dict(zip(BOX_COLUMNS, manifest.boxes.T.tolist(), strict=True))
    with atomic_path(file) as temporary, temporary.open("w", encoding="utf-8", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))


def _labels(rows: Sequence[Row], table: Path) -> tuple[list[int], list[str]]:
    values = [row["label"].strip() for row in rows]
    for line, value in enumerate(values, 2):
        if value == "" or (_is_number(value) and not (value.isdecimal() and len(value) <= MOST_DIGITS)):
            raise InputError(f"{table}, line {line}: the label {value!r} is neither a whole number nor a name")
    if all(value.isdecimal() for value in values):
        classes = sorted({int(value) for value in values})
        index = {number: i for i, number in enumerate(classes)}
        return [index[int(value)] for value in values], [str(number) for number in classes]
    names = sorted(set(values))
    place = {name: i for i, name in enumerate(names)}
    return [place[value] for value in values], names


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _split(row: Row, table: Path, line: int) -> str:
    if "split" not in row:
        return ""
    value = row["split"].strip().lower()
    if value not in SPLIT_NAMES:
        raise InputError(f"{table}, line {line}: the split {row['split']!r} is none of {', '.join(SPLIT_NAMES)}")
    return SPLIT_NAMES[value]


def _flags(rows: Sequence[Row], column: str, table: Path, counts: Sequence[bool]) -> list[bool]:
    """A column of true and false; training rows may leave it empty, and count as true whatever they say."""
    if column not in rows[0]:
        return [True] * len(rows)
    flags = []
    for line, (row, matters) in enumerate(zip(rows, counts, strict=True), 2):
        value = row[column].strip().lower()
        if value not in TRUE + FALSE + (() if matters else EMPTY):
            raise InputError(f"{table}, line {line}: {column} is {row[column]!r}, expected True or False")
        flags.append(value in TRUE or not matters)
    return flags


def _boxes(rows: Sequence[Row], table: Path) -> list[list[float]] | None:
    if not set(BOX_COLUMNS) <= set(rows[0]):
        return None
    boxes = []
    for line, row in enumerate(rows, 2):
        values = [row[column] for column in BOX_COLUMNS]
        if not all(_is_number(value) for value in values):
            raise InputError(f"{table}, line {line}: the box {', '.join(values)} is not four numbers")
        boxes.append([float(value) for value in values])
    return boxes


def _groups(rows: Sequence[Row], column: str | None, table: Path) -> np.ndarray | None:
    if column is not None and column not in rows[0]:
        raise unknown(f"group_column of {table}", column, list(rows[0]))
    column = column or "category"
    if column not in rows[0]:
        return None
    return np.unique([row[column] for row in rows], return_inverse=True)[1]
