"""Anybody's photos: a folder of class folders, or train, val and test folders of class folders."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from hgsl.common.errors import InputError
from hgsl.common.files import as_text, walk_files
from hgsl.data.files.images import IMAGE_SUFFIXES
from hgsl.data.manifest import SPLITS, Manifest, make_manifest


def load(root: Path, seed: int = 0) -> Manifest:
    """Lists a folder: each class is a folder, named after it, with its images directly or deeper inside.

    If ``root`` holds nothing but folders called train, val and test, those hold the class folders and give the split;
    where a class occurs in more than one of them, the split is of images (closed-set). Links are followed.

    Args:
        root: The folder.
        seed: Shuffles the order of the classes, and so decides which of them a class-disjoint split searches.

    Raises:
        FileNotFoundError: There is no such folder.
        InputError: No class folder with an image, or a negative seed.
    """
    if seed < 0:
        raise InputError(f"folder: the option seed cannot be negative, found {seed}")
    if not root.is_dir():
        raise FileNotFoundError(f"folder: the data root {root} does not exist or is no folder")
    rows: list[tuple[str, str, str]] = []  # path, class, split
    skipped: list[tuple[str, str]] = []
    top = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith("."))
    splits = top if top and set(top) <= set(SPLITS) else [""]
    for split in splits:
        for path, name in _class_images(root, root / split, skipped):
            rows.append((path, name, split))
    if not rows:
        raise InputError(
            f"folder: no images in class folders of {root}: it needs one folder a class, such as CLASS/1.jpg"
        )
    names = sorted({name for _, name, _ in rows})
    names = [names[i] for i in np.random.default_rng(seed).permutation(len(names))]
    index = {name: i for i, name in enumerate(names)}
    return make_manifest(
        "folder",
        root,
        [path for path, _, _ in rows],
        [index[name] for _, name, _ in rows],
        names,
        protocol=_split_kind(rows) if splits != [""] else "",
        split=[split for _, _, split in rows],
        skipped=skipped,
    )


def _class_images(root: Path, top: Path, skipped: list[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Yields (path relative to root, class) in sorted order; what is not taken goes to ``skipped`` with the reason."""
    for entry in sorted(os.scandir(top), key=lambda entry: entry.name):
        relative = as_text(Path(entry.path).relative_to(root))
        if entry.name.startswith("."):
            continue
        if not entry.is_dir():
            skipped.append((relative, "not in a class folder"))
            continue
        found = 0
        for path in walk_files(Path(entry.path), root, top):
            reason = _unusable(path)
            if reason is None:
                found += 1
                yield path.relative_to(root).as_posix(), entry.name
            else:
                skipped.append((as_text(path.relative_to(root)), reason))
        if not found:
            skipped.append((relative + "/", "a class folder without images"))


def _unusable(path: Path) -> str | None:
    """Why a file is not taken, or None if it is."""
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        return f"not an image file ({as_text(path.suffix.lower()) or 'no suffix'})"
    try:
        str(path).encode()
        return None if path.stat().st_size else "an empty file"
    except UnicodeEncodeError:
        return "its name is not UTF-8"
    except OSError:
        return "a broken link"


def _split_kind(rows: list[tuple[str, str, str]]) -> str:
    pairs = {(name, split) for _, name, split in rows}
    return "zero-shot" if len(pairs) == len({name for name, _ in pairs}) else "closed-set"
