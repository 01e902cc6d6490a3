"""Stanford Cars (Krause et al., 2013), in either of its two official forms."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hgsl.data.adapters.benchmarks.lists import read_mat
from hgsl.data.build_manifest import make_manifest
from hgsl.data.files.layout import find_root
from hgsl.data.manifest import Manifest

LABELED_TEST = "cars_test_annos_withlabels.mat"


def load(root: Path) -> Manifest:
    """Reads ``cars_annos.mat`` (images in ``car_ims/``), or ``devkit/`` (images in ``cars_train/``, ``cars_test/``).

    Where both forms are present, the one with its images is read. The test labels of the second form are a separate
    file, ``cars_test_annos_withlabels.mat``, in ``devkit/`` or beside it. Kaggle's copies nest folders of equal names,
    ``cars_train/cars_train/`` and ``car_devkit/devkit/``, and number files that were downloaded again.

    Raises:
        FileNotFoundError: Neither form is present, or the test labels are missing.
        InputError: A file is damaged.
    """
    markers = ("cars_annos.mat", "devkit", "car_devkit")
    if not any((root / marker).exists() for marker in markers):
        root = find_root("cars", root, "devkit", "stanford_cars")
    devkit = _devkit(root).is_dir() and not (root / "car_ims").is_dir()
    if devkit and ((root / "cars_train").is_dir() or not (root / "cars_annos.mat").exists()):
        return _load_devkit(root)
    rows, names = read_mat(root / "cars_annos.mat", "annotations", "class_names")
    return make_manifest(
        "cars",
        root,
        [row["relative_im_path"] for row in rows],
        [row["class"] - 1 for row in rows],
        list(names),
        protocol="closed-set",
        split=["test" if row["test"] else "train" for row in rows],
        boxes=_boxes(rows),
    )


def _load_devkit(root: Path) -> Manifest:
    devkit = _devkit(root)
    (names,) = read_mat(devkit / "cars_meta.mat", "class_names")
    (train,) = read_mat(devkit / "cars_train_annos.mat", "annotations")
    pattern = f"{Path(LABELED_TEST).stem}*.mat"
    labeled = next((file for folder in (devkit, root) for file in sorted(folder.glob(pattern))), None)
    if labeled is None:
        raise FileNotFoundError(
            f"cars: {LABELED_TEST} is neither in {devkit} nor in {root}: the test images have no labels without it"
        )
    (test,) = read_mat(labeled, "annotations")
    rows = [*train, *test]
    splits = ["train"] * len(train) + ["test"] * len(test)
    folders = {split: _nested(root, f"cars_{split}") for split in ("train", "test")}
    return make_manifest(
        "cars",
        root,
        [f"{folders[split]}/{row['fname']}" for split, row in zip(splits, rows, strict=True)],
        [row["class"] - 1 for row in rows],
        list(names),
        protocol="closed-set",
        split=splits,
        boxes=_boxes(rows),
    )


def _devkit(root: Path) -> Path:
    nested = root / "car_devkit" / "devkit"
    return nested if nested.is_dir() else root / "devkit"


def _nested(root: Path, folder: str) -> str:
    """The folder, or the one of the same name in it."""
    return f"{folder}/{folder}" if (root / folder / folder).is_dir() else folder


def _boxes(rows: list[Mapping[str, Any]]) -> NDArray[np.float64]:
    """Boxes as x1 y1 x2 y2, x2 and y2 exclusive; in the devkit, pixels count from 1 and x2 and y2 are inclusive."""
    keys = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2")
    return np.array([[row[key] for key in keys] for row in rows], np.float64) - [1, 1, 0, 0]
