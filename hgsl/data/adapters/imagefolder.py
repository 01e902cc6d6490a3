"""Adapter of image folders with metadata files, as Hugging Face ``datasets`` reads them with ``imagefolder``."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from hgsl.common.errors import InputError
from hgsl.common.extras import require
from hgsl.common.files import walk_files
from hgsl.common.suggestions import nearest
from hgsl.data.adapters.parquet_rows import read_parquet_rows
from hgsl.data.adapters.rows import manifest_of_rows, split_of, with_protocol
from hgsl.data.adapters.table import PATH_COLUMNS, Row, read_labels, read_rows
from hgsl.data.files.parquet_images import open_parquet
from hgsl.data.manifest import SPLIT_NAMES, Manifest

METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
FILE_NAME = "file_name"  # column


def load(root: Path, label_column: str = "label", group_column: str | None = None) -> Manifest:
    """Reads every ``metadata.csv``, ``.jsonl`` or ``.parquet``: a column ``file_name``, a label, and those of ``csv``.

    The split is in a column ``split``, or is that of the folder of the metadata file or of the image, such as
    ``train/metadata.csv``.

    Args:
        root: The folder, with metadata files at any depth.
        label_column: Column of text or integers.
        group_column: See :func:`hgsl.data.adapters.csv.load`.

    Raises:
        FileNotFoundError: There is no metadata file.
        InputError: A column is missing, or a value is invalid for its column; the message names the file and the line.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"imagefolder: the data root {root.absolute()} does not exist or is not a folder")
    tables = [path for path in walk_files(root) if path.name in METADATA]
    if not tables:
        raise FileNotFoundError(
            f"imagefolder: there is no {' or '.join(METADATA)} in {root.absolute()}: class folders without one "
            "are read by the data set folder"
        )
    rows = [row for table in tables for row in _read(table, root, label_column)]
    labels, class_names = read_labels(rows)
    return with_protocol(manifest_of_rows("imagefolder", root, rows, labels, class_names, _splits(rows), group_column))


def _read(table: Path, root: Path, label_column: str) -> Iterator[Row]:
    folder = table.parent.relative_to(root)
    for row in _rows(table, label_column):
        for column in (FILE_NAME, label_column):
            if column not in row:
                close = nearest(column, row.values)
                hint = f" (is it {close!r}?)" if close else ""
                raise InputError(f"{row}: there is no {column!r}{hint}: it has {', '.join(row.values)}")
        path = (folder / row[FILE_NAME]).as_posix()
        others = {column: value for column, value in row.values.items() if column not in PATH_COLUMNS}
        yield replace(row, values={**others, "path": path, "label": row[label_column]})


def _rows(table: Path, label_column: str) -> Iterator[Row]:
    if table.suffix == ".csv":
        yield from read_rows(table, required=((FILE_NAME,), (label_column,)))
    elif table.suffix == ".parquet":
        require("parquet", str(table))
        yield from read_parquet_rows(table, open_parquet(table))
    else:
        yield from _lines(table)


def _lines(table: Path) -> Iterator[Row]:
    with table.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                values = json.loads(line)
                yield Row({key: "" if value is None else str(value) for key, value in values.items()}, table, number)
            except (ValueError, RecursionError, AttributeError):
                shown = line.strip().decode(errors="backslashreplace")
                raise InputError(f"{table}, line {number}: not a JSON object in UTF-8: {shown:.60}") from None


def _splits(rows: Sequence[Row]) -> list[str]:
    if any("split" in row for row in rows):
        return [split_of(row) if "split" in row else _folder_split(row["path"]) for row in rows]
    splits = [_folder_split(row["path"]) for row in rows]
    if "" in splits and len(set(splits)) > 1:
        row = rows[splits.index("")]
        raise InputError(f"{row}: {row['path']} is in no split folder such as train, but others are: move it to one")
    return splits if len(set(splits)) > 1 else [""] * len(rows)


def _folder_split(path: str) -> str:
    """The split of the topmost split folder in a path; empty if there is none."""
    folders = [part.lower() for part in path.split("/")[:-1]]
    return next((SPLIT_NAMES[folder] for folder in folders if folder in SPLIT_NAMES), "")
