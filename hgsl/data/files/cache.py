"""Images kept as they are after resizing, so that an epoch after the first reads pixels instead of decoding JPEG."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hgsl.common.errors import InputError
from hgsl.common.files import atomic_path


def default_cache_dir() -> Path:
    """``$XDG_CACHE_HOME/hgsl/resized``, or that below ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hgsl" / "resized"


def file_key(source: Path, *how: object) -> str:
    """A name for what is made of a file: it changes with the file's place, size and time, and with ``how``.

    Raises:
        InputError: There is no such file.
    """
    try:
        found = source.stat()
    except OSError:
        raise InputError(f"image {source} does not exist") from None
    text = repr((str(source.absolute()), found.st_size, found.st_mtime_ns, how))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def cached(folder: Path, key: str, make: Callable[[], Tensor]) -> Tensor:
    """Returns the pixels (3, H, W) uint8 kept under ``key``; if there are none, or damaged ones, makes and keeps them.

    They are kept as they are, in ``.npy`` files: what comes back is what ``make`` returned. Several processes may do
    this at once, since files appear whole or not at all.

    Raises:
        OSError: The folder cannot be written, or the disk is full.
    """
    file = folder / key[:2] / f"{key}.npy"
    try:
        return torch.from_numpy(np.load(file, allow_pickle=False)).permute(2, 0, 1)  # (H, W, 3) -> (3, H, W)
    except FileNotFoundError:
        pass
    except (ValueError, EOFError, TypeError, RuntimeError):  # cut off or overwritten
        file.unlink(missing_ok=True)
    pixels = make()
    with atomic_path(file) as temporary:
        np.save(temporary, pixels.permute(1, 2, 0).contiguous().numpy())
    return pixels
