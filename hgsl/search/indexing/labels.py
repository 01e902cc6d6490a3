"""Labels of the images of an index: the names of their class folders, or a table."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from hgsl.common.errors import InputError
from hgsl.common.paths import relative_to_root
from hgsl.data.adapters.csv import PATH_COLUMNS, find_table, read_rows
from hgsl.data.manifest import SPLITS

FOLDERS = "folders"


def label_source(given: str | Path | None, previous: Mapping[str, Any]) -> str:
    """``FOLDERS`` or the path of a table: what was given, else the source recorded in the previous ``index.json``."""
    if given is None:
        return str(previous.get("labels", FOLDERS))
    return FOLDERS if str(given) == FOLDERS else str(Path(given).expanduser().absolute())


def read_labels(source: str, root: Path, paths: Sequence[str], notes: list[str]) -> dict[str, str]:
    """Path -> label for the images of ``root``; what the user must know is appended to ``notes``.

    Raises:
        FileNotFoundError: There is no such table.
        InputError: The table is malformed.
    """
    if source == FOLDERS:
        return folder_labels(paths)
    labels = table_labels(Path(source), root)
    missing = sorted(set(labels) - set(paths))
    if missing:
        notes.append(f"{source} labels {len(missing):,} images that are not in {root}, such as {missing[0]}")
    return labels


def folder_labels(paths: Iterable[str]) -> dict[str, str]:
    """Path -> the name of its class folder; images outside any folder have no label.

    The class folder is the topmost one, or the one below where all topmost folders are called train, val or test.

    >>> folder_labels(["rose/1.jpg", "2.jpg"])
    {'rose/1.jpg': 'rose'}
    """
    parts = {path: path.split("/")[:-1] for path in paths}
    tops = {folders[0] if folders else "" for folders in parts.values()}
    level = 1 if tops <= set(SPLITS) else 0
    return {path: folders[level] for path, folders in parts.items() if len(folders) > level}


def table_labels(table: Path, root: Path) -> dict[str, str]:
    """Path -> label, from a table with columns ``path`` (relative to ``root``, or inside it) and ``label``.

    Raises:
        FileNotFoundError: There is no such table.
        InputError: A column is missing, a line is malformed, or an image is listed with two labels.
    """
    table = find_table(table)
    rows = read_rows(table, "utf-8-sig")
    column = next(name for name in PATH_COLUMNS if name in rows[0])
    labels: dict[str, str] = {}
    for line, row in enumerate(rows, 2):
        path = PurePosixPath(relative_to_root(row[column], root))
        label = row["label"].strip()
        if labels.setdefault(path.as_posix(), label) != label:
            raise InputError(f"{table}, line {line}: {path} is {label!r} here and {labels[path.as_posix()]!r} before")
    return {path: label for path, label in labels.items() if label}
