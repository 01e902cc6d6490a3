"""Oxford 102 Category Flowers (Nilsback and Zisserman, 2008): ``jpg/``, ``imagelabels.mat``, ``setid.mat``."""

from pathlib import Path

import numpy as np

from hgsl.common.errors import InputError
from hgsl.data.adapters.benchmarks.lists import read_mat
from hgsl.data.build_manifest import make_manifest
from hgsl.data.files.layout import find_root
from hgsl.data.manifest import Manifest


def load(root: Path) -> Manifest:
    """Reads the labels and the official split; the classes of the archive have numbers, but no names.

    Raises:
        FileNotFoundError: A list is missing.
        InputError: The two lists contradict each other.
    """
    root = find_root("flowers", root, "imagelabels.mat")
    (labels,) = read_mat(root / "imagelabels.mat", "labels")
    numbers = [np.atleast_1d(part).astype(np.int64) for part in read_mat(root / "setid.mat", "trnid", "valid", "tstid")]
    if not np.array_equal(np.sort(np.concatenate(numbers)), np.arange(1, len(labels) + 1)):
        raise InputError(f"{root / 'setid.mat'} does not split the {len(labels)} images of imagelabels.mat")
    split = np.full(len(labels), "train", "<U5")
    for name, part in zip(("val", "test"), numbers[1:], strict=True):
        split[part - 1] = name
    classes = int(labels.max())
    return make_manifest(
        "flowers",
        root,
        [f"jpg/image_{number:05}.jpg" for number in range(1, len(labels) + 1)],
        labels.astype(np.int64) - 1,
        [str(number) for number in range(1, classes + 1)],
        protocol="closed-set",
        split=split,
    )
