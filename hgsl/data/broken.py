"""Training images that cannot be read, and a manifest without them."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np

from hgsl.common.cores import available_cores
from hgsl.common.errors import InputError
from hgsl.common.locations import read_bytes
from hgsl.common.progress import progress_bar
from hgsl.data.dataset import RetrievalDataset
from hgsl.data.manifest import Manifest
from hgsl.data.overview import first_names

SIDE = 224  # a JPEG is decoded at this size or above, which reads all of its data


def skip_broken(manifest: Manifest) -> Manifest:
    """Reads every training image, and takes those that cannot be decoded out of the training split, with a note.

    Their rows stay, without a split, so that a run records them and a resumed run does not take them for new images.
    The hash of every other split is the same with and without them. Validation and test images are not read: scores
    without some of them would be those of other images.

    Raises:
        InputError: An image at an address cannot be fetched, which does not mean that it is broken.
    """
    rows = np.flatnonzero(manifest.split == "train")
    if manifest.render is not None or not len(rows):
        return manifest
    images = RetrievalDataset(manifest.take(rows))

    def is_broken(row: int) -> bool:
        location = images.manifest.location(row)
        if isinstance(location, str):
            read_bytes(location)
        try:
            images.image(row, SIDE)
        except InputError:
            return True
        return False

    with ThreadPoolExecutor(available_cores()) as pool:  # decoding releases the GIL
        checks = pool.map(is_broken, range(len(rows)))
        broken = rows[list(progress_bar(checks, total=len(rows), desc="checking images", unit="image"))]
    if not len(broken):
        return manifest
    split = manifest.split.copy()
    split[broken] = ""
    paths = [manifest.paths[row] for row in broken]
    what = "1 training image" if len(paths) == 1 else f"{len(paths):,} training images"
    note = f"{what} skipped, as unreadable (data.broken skip): {first_names(paths, 10)}"
    return replace(manifest, split=split, notes=(*manifest.notes, note))
