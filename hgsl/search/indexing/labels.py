"""Labels of the images of an index: the names of their class folders, or a table, whose other columns are values."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from hgsl.common.errors import InputError
from hgsl.common.paths import relative_to_root
from hgsl.data.adapters.split_folders import split_folders
from hgsl.data.adapters.table import find_table, read_rows
from hgsl.data.manifest import SPLIT_NAMES
from hgsl.search.folder.layout import FOLDERS
from hgsl.search.indexing.columns import typed_columns
from hgsl.search.stores.protocol import ImageFile, ImageRow, Value
from hgsl.search.where.nodes import FieldType


@dataclass(frozen=True)
class Attributes:
    """What is known of the images besides their files.

    Attributes:
        labels: Path -> label.
        values: Path -> column -> value.
        columns: Name -> type of the columns.
    """

    labels: Mapping[str, str]
    values: Mapping[str, Mapping[str, Value]] = field(default_factory=dict)
    columns: dict[str, FieldType] = field(default_factory=dict)

    def row(self, image: ImageFile) -> ImageRow:
        """The image with its label and values."""
        return ImageRow(image, self.labels.get(image.path), self.values.get(image.path, {}))


def label_source(given: str | Path | None, previous: Mapping[str, Any]) -> str:
    """``FOLDERS`` or the path of a table: the given source, else the one in the previous ``index.json``."""
    if given is None:
        return str(previous.get("labels", FOLDERS))
    return FOLDERS if str(given) == FOLDERS else str(Path(given).expanduser().absolute())


def read_attributes(source: str, root: Path | str, paths: Sequence[str], notes: list[str]) -> Attributes:
    """Labels and values of the images of ``root``; messages to the user are appended to ``notes``.

    Raises:
        FileNotFoundError: There is no such table.
        InputError: The table is malformed.
    """
    if source == FOLDERS:
        notes += _split_notes(paths)
        return Attributes(folder_labels(paths))
    cells = table_cells(Path(source), root)
    missing = sorted(set(cells) - set(paths))
    if missing:
        notes.append(f"{source} labels {len(missing):,} images that are not in {root}, such as {missing[0]}")
    labels = {path: values["label"] for path, values in cells.items() if values["label"].strip()}
    unlabeled = [path for path in paths if path not in labels]
    if unlabeled:
        notes.append(
            f"{len(unlabeled):,} of {len(paths):,} images have no label in {source}, such as {unlabeled[0]}: its paths "
            f"are relative to {root}"
        )
    return Attributes(labels, *typed_columns(cells, notes))


def folder_labels(paths: Iterable[str]) -> dict[str, str]:
    """Path -> the name of its class folder; images outside any folder have no label.

    The class folder is the topmost one, or the one below it inside split folders such as train, valid and test.

    >>> folder_labels(["rose/1.jpg", "2.jpg"])
    {'rose/1.jpg': 'rose'}
    >>> folder_labels(["Train/rose/1.jpg", "test/rose/2.jpg"])
    {'Train/rose/1.jpg': 'rose', 'test/rose/2.jpg': 'rose'}
    """
    parents = {path: path.split("/")[:-1] for path in paths}
    splits = split_folders(_top_folders(paths))
    if splits:
        return {path: folders[1] for path, folders in parents.items() if len(folders) > 1 and folders[0] in splits}
    return {path: folders[0] for path, folders in parents.items() if folders}


def _top_folders(paths: Iterable[str]) -> dict[str, bool]:
    """Top-level folder -> whether images lie directly in it."""
    top_folders: dict[str, bool] = {}
    for folders in (path.split("/")[:-1] for path in paths):
        if folders:
            top_folders[folders[0]] = top_folders.get(folders[0], False) or len(folders) == 1
    return top_folders


def _split_notes(paths: Sequence[str]) -> list[str]:
    """Messages to the user if top-level folders are, or may be, split folders rather than classes."""
    top_folders = _top_folders(paths)
    splits = split_folders(top_folders)
    if splits:
        unlabeled = len(paths) - len(folder_labels(paths))
        unlabeled_note = f"; {unlabeled:,} images outside them have no label" if unlabeled else ""
        return [f"labels are the class folders inside the split folders {', '.join(sorted(splits))}{unlabeled_note}"]
    names = sorted(name for name in top_folders if name.lower() in SPLIT_NAMES)
    if names:
        return [f"the folder {names[0]} is taken as a class, not as a split: --labels TABLE.csv gives other labels"]
    return []


def table_cells(table: Path, root: Path | str) -> dict[str, dict[str, str]]:
    """Path -> column -> text, from a table with columns ``path`` (relative to ``root``, or inside it) and ``label``.

    Raises:
        FileNotFoundError: There is no such table.
        InputError: A column is missing, a line is malformed, or an image is listed with two labels.
    """
    cells: dict[str, dict[str, str]] = {}
    for row in read_rows(find_table(table)):
        path = PurePosixPath(relative_to_root(row.path, root)).as_posix()
        first = cells.setdefault(path, row.values)
        if first["label"] != row["label"]:
            raise InputError(f"{row}: {path} is {row['label']!r} here and {first['label']!r} before")
    return cells
