"""FGVC-Aircraft (Maji et al., 2013): ``fgvc-aircraft-2013b/data/`` with its lists and ``images/``."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hgsl.common.errors import InputError, unknown
from hgsl.data.adapters.benchmarks.lists import read_columns, read_numbered, to_floats
from hgsl.data.build_manifest import make_manifest
from hgsl.data.files.layout import find_root
from hgsl.data.manifest import Manifest

LEVELS = {"variant": "variants.txt", "family": "families.txt", "manufacturer": "manufacturers.txt"}


def load(root: Path, level: str = "variant") -> Manifest:
    """Reads the lists of one level, and the boxes if ``images_box.txt`` exists; rows are in the order of image ids.

    The lists ``train`` and ``val`` give the split; without them, all of ``trainval`` is the training split.

    Args:
        root: The unpacked archive, or its folder ``data``.
        level: "variant" (100 classes), "family" (70) or "manufacturer" (30).

    Raises:
        FileNotFoundError: A list is missing.
        InputError: The level is unknown, or the lists contradict each other.
    """
    if level not in LEVELS:
        raise unknown("level of aircraft", level, LEVELS)
    root = find_root("aircraft", root, LEVELS[level], "data", "fgvc-aircraft-2013b/data")
    index = {name: i for i, (name,) in enumerate(read_columns(root / LEVELS[level], 1))}
    parts = ["train", "val"] if (root / f"images_{level}_train.txt").exists() else ["trainval"]
    rows = []  # image id, class, split
    for part in (*parts, "test"):
        file = root / f"images_{level}_{part}.txt"
        for image, name in read_columns(file, 2):
            if name not in index:
                raise InputError(f"{file} names the class {name!r}, which is not in {LEVELS[level]}")
            rows.append((image, index[name], part.replace("trainval", "train")))
    rows.sort()
    images, labels, split = zip(*rows, strict=True)
    return make_manifest(
        "aircraft",
        root,
        [f"images/{image}.jpg" for image in images],
        labels,
        list(index),
        protocol="closed-set",
        split=split,
        boxes=_boxes(root / "images_box.txt", images),
        notes=() if level == "variant" else (f"classes are of the level {level}",),
    )


def _boxes(file: Path, images: tuple[str, ...]) -> NDArray[np.float64] | None:
    """Boxes as x1 y1 x2 y2, x2 and y2 exclusive; in the list, pixels count from 1 and x2 and y2 are inclusive."""
    if not file.exists():
        return None
    boxes = read_numbered(file, 5)
    missing = next((image for image in images if image not in boxes), None)
    if missing is not None:
        raise InputError(f"{file} has no box for image {missing}")
    return to_floats((boxes[image] for image in images), file) - [1, 1, 0, 0]
