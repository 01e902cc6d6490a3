"""Oxford 17 Category Flowers (Nilsback and Zisserman, CVPR 2006): ``jpg/image_0001.jpg`` .. ``image_1360.jpg``."""

from pathlib import Path

import numpy as np

from hgsl.data.build_manifest import make_manifest
from hgsl.data.files.layout import find_root
from hgsl.data.manifest import Manifest

# In the order of the files, 80 images each; no file of the archive lists these names.
CLASS_NAMES = (
    *("daffodil", "snowdrop", "lily of the valley", "bluebell", "crocus", "iris", "tiger lily", "tulip", "fritillary"),
    *("sunflower", "daisy", "coltsfoot", "dandelion", "cowslip", "buttercup", "windflower", "pansy"),
)
PER_CLASS = 80


def load(root: Path) -> Manifest:
    """Lists the unpacked archive ``17flowers.tgz``; the number in a file name gives the class, as there is no list.

    Raises:
        FileNotFoundError: There is no folder ``jpg`` in ``root``.
    """
    root = find_root("flowers17", root, "jpg")
    count = PER_CLASS * len(CLASS_NAMES)
    paths = [f"jpg/image_{number:04}.jpg" for number in range(1, count + 1)]
    return make_manifest("flowers17", root, paths, np.arange(count) // PER_CLASS, CLASS_NAMES)
