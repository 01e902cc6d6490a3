"""Files of arrays, checked without reading them."""

import os
from pathlib import Path

from hgsl.common.errors import InputError

SUFFIXES = (".npy", ".npz", ".safetensors")


def check_array_file(path: str | os.PathLike[str]) -> Path:
    """Returns the path of a file of arrays.

    Raises:
        FileNotFoundError: There is no such file.
        InputError: It is a folder, or its suffix is not one of ``SUFFIXES``.
    """
    file = Path(path)
    if file.is_dir():
        raise InputError(f"{file} is a folder: name a .npy, .npz or .safetensors file in it")
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file")
    if file.suffix not in SUFFIXES:
        raise InputError(f"{file}: expected a .npy, .npz or .safetensors file")
    return file
