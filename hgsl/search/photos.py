"""The photos of a folder: what is there now, and which kind each is of."""

import stat
from collections import Counter
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from hgsl.common.errors import InputError
from hgsl.common.files import as_text, walk_files
from hgsl.common.paths import relative_to_root
from hgsl.data.adapters.csv import PATH_COLUMNS, find_table, read_rows
from hgsl.data.files.images import IMAGE_SUFFIXES
from hgsl.data.manifest import SPLITS


class Photo(NamedTuple):
    """A file as it is on the disk. Equal values mean that it was not touched since."""

    path: str  # relative to the folder, POSIX
    size: int  # bytes
    mtime_ns: int


class Listing(NamedTuple):
    """What a folder holds.

    Attributes:
        photos: Sorted by path.
        ignored: How many other files there are, by suffix.
        unusable: (path, reason) of photos whose very name cannot be stored.
    """

    photos: list[Photo]
    ignored: Counter[str]
    unusable: list[tuple[str, str]]


def list_photos(root: Path) -> Listing:
    """Lists every image file below ``root``, by suffix; hidden files and folders are left out, links are followed.

    Raises:
        FileNotFoundError: There is no such folder.
        InputError: It holds no photo: an index is not emptied because a disk is not mounted.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"no folder {root}: --images names the folder that holds the photos")
    found = Listing([], Counter(), [])
    for path in walk_files(root):
        name = path.relative_to(root).as_posix()
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            found.ignored[as_text(path.suffix.lower()) or "no suffix"] += 1
            continue
        try:
            name.encode()
            facts = path.stat()
        except UnicodeEncodeError:
            found.unusable.append((as_text(name), "its name is not UTF-8: rename it"))
        except OSError as error:
            found.unusable.append((name, error.strerror or "cannot be read"))
        else:
            if not stat.S_ISREG(facts.st_mode):  # such as a pipe, which would be waited for
                found.unusable.append((name, "is no regular file"))
                continue
            found.photos.append(Photo(name, facts.st_size, facts.st_mtime_ns))
    if not found.photos:
        others = ", ".join(f"{count} {suffix}" for suffix, count in found.ignored.most_common(5))
        raise InputError(f"{root} holds no photos{f' (only {others})' if others else ''}: is it the right folder?")
    found.photos.sort()
    return found


def folder_labels(paths: Iterable[str]) -> dict[str, str]:
    """Path -> the name of its class folder; photos that lie in none have no label.

    The class folder is the topmost one, or the one below where all topmost are called train, val or test.

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
        InputError: A column is missing, a line is malformed, or a photo is listed with two labels.
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
