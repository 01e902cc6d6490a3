"""Caltech-UCSD Birds 200-2011 (Wah et al., 2011): ``CUB_200_2011/`` with its lists and ``images/``."""

from pathlib import Path

import numpy as np

from hgsl.common.errors import InputError
from hgsl.data.adapters.benchmarks.lists import read_numbered, to_floats, to_int
from hgsl.data.build_manifest import make_manifest
from hgsl.data.files.layout import find_root
from hgsl.data.manifest import Manifest


def load(root: Path) -> Manifest:
    """Reads images.txt, image_class_labels.txt, train_test_split.txt, classes.txt and bounding_boxes.txt.

    Raises:
        FileNotFoundError: A list is missing.
        InputError: The lists contradict each other.
    """
    root = find_root("cub", root, "images.txt", "CUB_200_2011")
    images = read_numbered(root / "images.txt")
    tables = {
        file: read_numbered(root / file, columns)
        for file, columns in (("image_class_labels.txt", 2), ("train_test_split.txt", 2), ("bounding_boxes.txt", 5))
    }
    for file, table in tables.items():
        if table.keys() != images.keys():
            raise InputError(f"{root / file} and images.txt list different images: take all lists from one archive")
    labels, official, boxes = tables.values()
    classes = read_numbered(root / "classes.txt")
    index = {number: i for i, number in enumerate(classes)}
    unknown = next((row[0] for row in labels.values() if row[0] not in index), None)
    if unknown is not None:
        raise InputError(f"{root / 'image_class_labels.txt'} names class {unknown}, which is not in classes.txt")
    x, y, width, height = to_floats((boxes[key] for key in images), root / "bounding_boxes.txt").T
    return make_manifest(
        "cub",
        root,
        [f"images/{path}" for (path,) in images.values()],
        [index[labels[key][0]] for key in images],
        [name for (name,) in classes.values()],
        protocol="closed-set",
        split=["train" if to_int(official[key][0], root / "train_test_split.txt") else "test" for key in images],
        boxes=np.stack([x, y, x + width, y + height], axis=1),
    )
