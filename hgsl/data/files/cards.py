"""Data set cards: source, license, archives and expected counts of a benchmark."""

from pathlib import Path
from typing import Any

import numpy as np

from hgsl.common.datasets import datasets_dir
from hgsl.common.errors import InputError
from hgsl.common.files import read_json
from hgsl.data.files.download import download
from hgsl.data.files.unpack import unpack
from hgsl.data.manifest import SPLITS, Manifest

Card = dict[str, Any]
Counts = dict[str, dict[str, int]]


def read_card(name: str) -> Card | None:
    """The card of a data set, ``datasets/NAME/card.json``; None if it has none, such as ``folder``."""
    file = datasets_dir() / name / "card.json"
    return read_json(file, "the card of a data set") if file.is_file() else None


def count(manifest: Manifest) -> Counts:
    """Number of classes and images of each split, and of queries and gallery where they differ.

    The form is that of ``card["expected"]`` for one protocol.

    >>> count(manifest)                                                       # doctest: +SKIP
    {'train': {'classes': 100, 'images': 5864}, 'test': {'classes': 100, 'images': 5924}}
    """
    counts: Counts = {}
    for split in SPLITS:
        rows = manifest.split == split
        if np.any(rows):
            counts[split] = {"classes": len(np.unique(manifest.labels[rows])), "images": int(rows.sum())}
            if not np.array_equal(manifest.is_query[rows], manifest.is_gallery[rows]):
                counts[split] |= {
                    "query": int((manifest.is_query & rows).sum()),
                    "gallery": int((manifest.is_gallery & rows).sum()),
                }
    return counts


def fetch(card: Card, root: Path, *, pause: float = 2.0) -> list[str]:
    """Downloads the archives of a card to ``root`` and unpacks them there; archives are kept.

    Returns:
        One line per step, for the user.

    Raises:
        InputError: The card has no link, the download fails, or the archive is not the expected one; the message ends
            with how to get the files by hand.
    """
    by_hand = f"{card['by_hand']} (put it in {root})"
    if not card["archives"]:
        raise InputError(f"{card['name']} has no direct link: {by_hand}")
    steps = []
    for archive in card["archives"]:
        if (root / archive["gives"]).exists():
            steps.append(f"{root / archive['gives']} exists")
            continue
        file = root / archive["file"]
        try:
            download(archive["url"], file, archive["bytes"], archive["checksums"], pause=pause)
        except InputError as error:
            raise InputError(f"{error}; by hand: {by_hand}") from None
        steps.append(f"downloaded {file}")
        if archive["gives"] != archive["file"]:
            steps.append(f"unpacked {', '.join(str(path) for path in unpack(file, root))}")
    return steps
