"""Adapter of Parquet files, also of Hugging Face: images as bytes or paths, a label, and the columns of ``csv``."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hgsl.common.errors import InputError, unknown
from hgsl.common.extras import require
from hgsl.common.files import walk_files
from hgsl.common.paths import is_inside
from hgsl.data.adapters.parquet_rows import read_parquet_rows
from hgsl.data.adapters.rows import image_folder, manifest_of_rows, split_of, with_protocol
from hgsl.data.adapters.table import BOX_COLUMNS, PATH_COLUMNS, Row, read_labels
from hgsl.data.files.parquet_images import FINGERPRINT, ParquetImages, open_parquet
from hgsl.data.manifest import SPLIT_NAMES, Manifest

COLUMNS = ("split", "is_query", "is_gallery", "category", *BOX_COLUMNS)
UNLABELED = ("", "-1")  # as Hugging Face writes test images whose labels are secret


class _Columns(NamedTuple):
    """Where the image of a row is: in the column ``content``, or at the path in the column ``path``."""

    content: str | None
    path: str | None


def load(
    root: Path,
    image_column: str = "image",
    label_column: str = "label",
    image_root: str | Path | None = None,
    group_column: str | None = None,
) -> Manifest:
    """Lists the rows of Parquet files; of the images, none is read.

    Classes are those of the ClassLabel that Hugging Face stores, in its order; otherwise labels are text as in ``csv``.
    The split is in a column ``split``, or in the names of files or folders, such as ``train-00000-of-00002.parquet``
    and ``test/0000.parquet``; files of a single split have none. A class in several splits makes it closed-set,
    otherwise it is zero-shot.

    Args:
        root: A Parquet file, or a folder with Parquet files at any depth.
        image_column: Column of encoded images: binary, a struct of ``bytes`` and ``path``, or paths as text. Without
            it, the columns ``img_path`` and ``path`` may have the paths.
        label_column: Column of text or integers.
        image_root: What paths are relative to, see :func:`hgsl.data.adapters.csv.load`; None for the root.
        group_column: See :func:`hgsl.data.adapters.csv.load`.

    Raises:
        FileNotFoundError: There is no Parquet file.
        InputError: A file is damaged, a column is missing, pyarrow is not installed, or a value is invalid for its
            column; the message names the file and the row.
    """
    require("parquet", "the data set parquet")
    files, opened = _open_files(root)
    columns = _same_columns(files, opened, image_column, label_column)
    class_names = _class_label_names(files, opened, label_column)
    wanted = [*COLUMNS, label_column, *filter(None, (columns.path, group_column))]
    rows = [
        row for file, parquet in zip(files, opened, strict=True) for row in read_parquet_rows(file, parquet, wanted)
    ]
    rows = [replace(row, values={**row.values, "label": row.values.get(label_column, "")}) for row in rows]
    labeled = [number for number, row in enumerate(rows) if row["label"] not in UNLABELED]
    folder = root if root.is_dir() else root.parent
    content = None
    if columns.content is not None:
        content = _images(files, opened, columns.content, np.array(labeled, np.int64))
    used = [rows[number] for number in labeled]
    if not used:
        raise InputError(f"parquet: no row of {root} has a label in the column {label_column!r}")
    labels, names = _labels(used, class_names)
    paths = None if content is None else _row_paths(used, columns.path, folder)
    if content is None:
        used = [replace(row, values={**row.values, "path": row[str(columns.path)]}) for row in used]
    splits, notes = _splits(used, folder)
    skipped = [(str(row), "no label") for row in rows if row["label"] in UNLABELED]
    images = image_folder(image_root, folder)
    options: Any = {"content": content, "paths": paths, "skipped": skipped, "notes": notes}
    manifest = manifest_of_rows("parquet", images, used, labels, names, splits, group_column, **options)
    return with_protocol(manifest)


def _list_files(root: Path) -> list[Path]:
    if root.is_file():
        return [root]
    if not root.is_dir():
        raise FileNotFoundError(f"parquet: the data root {root.absolute()} does not exist")
    names = list(walk_files(root))
    files = [path for path in names if path.suffix.lower() == ".parquet" and path.stem != "metadata"]
    if not files:
        metadata = any(path.stem == "metadata" for path in names)
        hint = ": it has a metadata file, which the data set imagefolder reads" if metadata else ""
        raise FileNotFoundError(f"parquet: there is no .parquet file in {root.absolute()}{hint}")
    return files


def _open_files(root: Path) -> tuple[list[Path], list[Any]]:
    """The files that have rows."""
    opened = {file: open_parquet(file) for file in _list_files(root)}
    opened = {file: parquet for file, parquet in opened.items() if parquet.metadata.num_rows}
    if not opened:
        raise InputError(f"parquet: the files in {root.absolute()} have no rows")
    return list(opened), list(opened.values())


def _same_columns(files: Sequence[Path], opened: Sequence[Any], image_column: str, label_column: str) -> _Columns:
    """The columns of all files.

    Raises:
        InputError: A column is missing, or two files store images in different ways.
    """
    columns = [_find_columns(*pair, image_column, label_column) for pair in zip(files, opened, strict=True)]
    for file, other in zip(files, columns, strict=True):
        if other != columns[0]:
            raise InputError(f"{file} stores images in another way than {files[0]}: read them as two data sets")
    return columns[0]


def _find_columns(file: Path, parquet: Any, image_column: str, label_column: str) -> _Columns:
    import pyarrow

    schema = parquet.schema_arrow
    if label_column not in schema.names:
        raise unknown(f"label_column of {file}", label_column, schema.names)
    text_path = next((name for name in PATH_COLUMNS if name in schema.names), None)
    if image_column not in schema.names:
        if text_path is None:
            raise unknown(f"image_column of {file}", image_column, schema.names)
        return _Columns(None, text_path)
    kind = schema.field(image_column).type
    types = pyarrow.types
    if types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        path = f"{image_column}.path" if kind.get_field_index("path") >= 0 else text_path
        content = f"{image_column}.bytes"
        is_empty = types.is_null(kind.field("bytes").type) or not _has_values(parquet.metadata, content)
        return _Columns(None if is_empty else content, path)
    if types.is_binary(kind) or types.is_large_binary(kind):
        return _Columns(image_column, text_path)
    if types.is_string(kind) or types.is_large_string(kind):
        return _Columns(None, image_column)
    raise InputError(
        f"{file}: the column {image_column!r} has the type {kind}, expected binary, a struct of bytes and path, or text"
    )


def _has_values(metadata: Any, column: str) -> bool:
    """Whether a column is not known to be empty, as where Hugging Face stores paths in place of bytes."""
    for group in range(metadata.num_row_groups):
        part = metadata.row_group(group)
        for number in range(part.num_columns):
            chunk = part.column(number)
            if chunk.path_in_schema == column and not (
                chunk.statistics and chunk.statistics.null_count == part.num_rows
            ):
                return True
    return False


def _class_label_names(files: Sequence[Path], opened: Sequence[Any], label_column: str) -> list[str] | None:
    """The class names that Hugging Face stores in the schema; None if there are none.

    Raises:
        InputError: Two files have different ones.
    """
    names = [_class_label(parquet.schema_arrow.metadata or {}, label_column) for parquet in opened]
    for file, other in zip(files, names, strict=True):
        if other != names[0]:
            raise InputError(f"{file} and {files[0]} have different class names: read them as two data sets")
    return names[0]


def _class_label(metadata: Mapping[bytes, bytes], column: str) -> list[str] | None:
    try:
        feature = json.loads(metadata[b"huggingface"])["info"]["features"][column]
        return [str(name) for name in feature["names"]] if feature["_type"] == "ClassLabel" else None
    except (LookupError, ValueError, TypeError):
        return None


def _labels(rows: Sequence[Row], class_names: list[str] | None) -> tuple[list[int], list[str]]:
    if class_names is None:
        return read_labels(rows)
    labels = []
    for row in rows:
        label = row["label"]
        if not (label.isdecimal() and int(label) < len(class_names)):
            raise InputError(f"{row}: the label {label!r} is not a number of one of its {len(class_names)} classes")
        labels.append(int(label))
    return labels, class_names


def _row_paths(rows: Sequence[Row], column: str | None, folder: Path) -> list[str]:
    """The stored paths, where each is inside the root and no two are equal; else the file and number of each row."""
    paths = [row[column] for row in rows] if column is not None else []
    boxes = all(name in row for row in rows for name in BOX_COLUMNS)  # an image may then be listed once per box
    if paths and all(map(is_inside, paths)) and (boxes or len(set(paths)) == len(paths)):
        return paths
    return [f"{row.table.relative_to(folder).with_suffix('').as_posix()}/{row.line:07}" for row in rows]


def _splits(rows: Sequence[Row], folder: Path) -> tuple[list[str], list[str]]:
    """The split of each row, and notes on them."""
    if any("split" in row for row in rows):
        return [split_of(row) for row in rows], []
    split_of_file = {file: _file_split(file.relative_to(folder)) for file in {row.table for row in rows}}
    without = sorted(file for file, split in split_of_file.items() if not split)
    splits = set(split_of_file.values())
    if without and splits != {""}:
        raise InputError(
            f"parquet: {without[0]} is of no split, but others of {folder} are: name it after one, such as "
            "train-0.parquet, or move it away"
        )
    if len(splits) == 1:
        note = [f"all files are of the split {splits.pop()}: they are read as images without a split"]
        return [""] * len(rows), [] if without else note
    return [split_of_file[row.table] for row in rows], []


def _file_split(path: Path) -> str:
    """The split that the name of a file, or else of a folder above it, begins with; empty if there is none."""
    for part in reversed(path.with_suffix("").parts):
        split = SPLIT_NAMES.get(re.split(r"[-_.]", part.lower())[0])
        if split is not None:
            return split
    return ""


def _images(files: Sequence[Path], opened: Sequence[Any], column: str, rows: np.ndarray) -> ParquetImages:
    counts = [
        (number, parquet.metadata.row_group(group).num_rows)
        for number, parquet in enumerate(opened)
        for group in range(parquet.metadata.num_row_groups)
    ]
    return ParquetImages(
        files=tuple(file.absolute() for file in files),
        column=column,
        group_starts=np.cumsum([0, *(count for _, count in counts)], dtype=np.int64),
        group_file=np.array([file for file, _ in counts], np.int64),
        rows=rows,
        has_fingerprints=all(FINGERPRINT in parquet.schema_arrow.names for parquet in opened),
    )
