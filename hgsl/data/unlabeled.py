"""Listing of images without labels, at any depth of a folder."""

from pathlib import Path

import numpy as np

from hgsl.common.errors import InputError
from hgsl.common.files import walk_files
from hgsl.common.images import IMAGE_SUFFIXES
from hgsl.data.build_manifest import make_manifest
from hgsl.data.manifest import Manifest


def list_unlabeled(root: Path) -> Manifest:
    """Lists the images of a folder as one class; hidden files are skipped and links are followed.

    Raises:
        FileNotFoundError: There is no such folder.
        InputError: It holds no image, or one whose name is not UTF-8.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"{root.absolute()} does not exist or is not a folder")
    images = (path for path in walk_files(root) if path.suffix.lower() in IMAGE_SUFFIXES)
    paths = [path.relative_to(root).as_posix() for path in images]
    if not paths:
        raise InputError(f"{root} holds no images: is it the right folder?")
    return make_manifest("unlabeled", root, paths, np.zeros(len(paths), np.int64), ["unlabeled"])
