"""Adapter of a user's own images in class folders, or in split folders of class folders."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from hgsl.common.errors import InputError
from hgsl.common.files import as_text, is_listed, walk_files
from hgsl.common.images import IMAGE_SUFFIXES
from hgsl.data.adapters.split_folders import split_folders
from hgsl.data.build_manifest import make_manifest
from hgsl.data.manifest import SPLIT_NAMES, Manifest

Skipped = list[tuple[str, str]]  # path, reason


def load(root: Path, seed: int = 0) -> Manifest:
    """Lists a folder: each folder in it is a class, with images at any depth.

    Split folders (train, valid and test, in any of their usual spellings) hold the class folders and give the split;
    other folders beside them are skipped and reported. If a class occurs in more than one split, the protocol is
    closed-set, otherwise zero-shot. Links are followed.

    Args:
        root: The folder.
        seed: Seed of the order of the classes, which determines the test classes of a class-disjoint split.

    Raises:
        FileNotFoundError: There is no such folder.
        InputError: No class folder with an image, two folders for one split, or a negative seed.
    """
    if seed < 0:
        raise InputError(f"folder: the option seed cannot be negative, found {seed}")
    if not root.is_dir():
        raise FileNotFoundError(f"folder: the data root {root.absolute()} does not exist or is not a folder")
    skipped: Skipped = []
    splits = _split_folders(root, skipped)
    rows = [
        (path, name, split)
        for top, split in (splits or {"": ""}).items()
        for path, name in _class_images(root, root / top, skipped)
    ]
    if not rows:
        hint = "; its own images are one class of the folder above" if _has_images(root) else ""
        raise InputError(
            f"folder: no images in class folders of {root}: expected one folder per class, such as CLASS/1.jpg{hint}"
        )
    names = sorted({name for _, name, _ in rows})
    names = [names[i] for i in np.random.default_rng(seed).permutation(len(names))]
    index = {name: i for i, name in enumerate(names)}
    classes_like_splits = sorted(name for name in names if name.lower() in SPLIT_NAMES)
    return make_manifest(
        "folder",
        root,
        [path for path, _, _ in rows],
        [index[name] for _, name, _ in rows],
        names,
        protocol=_protocol(rows) if splits else "",
        split=[split for _, _, split in rows],
        skipped=skipped,
        notes=[f"the folder {name!r} is a class here, not a split" for name in classes_like_splits],
    )


def _split_folders(root: Path, skipped: Skipped) -> Mapping[str, str]:
    """Split of each split folder in ``root``, sorted; folders beside them go to ``skipped``."""
    top_folders = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and is_listed(entry.name))
    splits = split_folders({top: _has_images(root / top) for top in top_folders})
    for top, split in splits.items():
        first = next(other for other, other_split in splits.items() if other_split == split)
        if first != top:
            raise InputError(f"folder: {root} has two folders for the split {split}, {first!r} and {top!r}: keep one")
    if splits:
        skipped += [
            (f"{as_text(top)}/", f"beside the split folders {', '.join(splits)}")
            for top in top_folders
            if top not in splits
        ]
    return splits


def _has_images(folder: Path) -> bool:
    """Whether images lie directly in ``folder``."""
    with os.scandir(folder) as entries:
        return any(Path(entry.name).suffix.lower() in IMAGE_SUFFIXES and entry.is_file() for entry in entries)


def _class_images(root: Path, top: Path, skipped: Skipped) -> Iterator[tuple[str, str]]:
    """Yields (path relative to root, class) in sorted order; skipped files and folders go to ``skipped``."""
    for entry in sorted(os.scandir(top), key=lambda entry: entry.name):
        relative = as_text(Path(entry.path).relative_to(root))
        if not is_listed(entry.name):
            continue
        if not entry.is_dir():
            skipped.append((relative, "not in a class folder"))
            continue
        images = 0
        for path in walk_files(Path(entry.path), root, top):
            reason = _unusable(path)
            if reason is None:
                images += 1
                yield path.relative_to(root).as_posix(), entry.name
            else:
                skipped.append((as_text(path.relative_to(root)), reason))
        if not images:
            skipped.append((relative + "/", "a class folder without images"))


def _unusable(path: Path) -> str | None:
    """Why a file is skipped, or None."""
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        return f"not an image file ({as_text(path.suffix.lower()) or 'no suffix'})"
    try:
        str(path).encode()
        return None if path.stat().st_size else "an empty file"
    except UnicodeEncodeError:
        return "its name is not UTF-8"
    except OSError:
        return "a broken link"


def _protocol(rows: list[tuple[str, str, str]]) -> str:
    """The protocol of a given split: zero-shot if no class is in two splits, else closed-set."""
    pairs = {(name, split) for _, name, split in rows}
    return "zero-shot" if len(pairs) == len({name for name, _ in pairs}) else "closed-set"
