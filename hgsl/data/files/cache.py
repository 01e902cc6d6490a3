"""Cache of resized images, so that every epoch but the first reads pixels instead of decoding JPEG."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hgsl.common.errors import InputError
from hgsl.common.files import atomic_path

DECODING = 2  # number of the rules of hgsl.data.files.images.decode, part of every key


def default_cache_dir() -> Path:
    """``$XDG_CACHE_HOME/hgsl/resized``, by default ``~/.cache/hgsl/resized``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hgsl" / "resized"


def file_key(source: Path, *settings: object) -> str:
    """The cache key of what is made of a file: it depends on the file's path, size and time, and on ``settings``.

    Raises:
        InputError: There is no such file, or it cannot be read.
    """
    try:
        facts = source.stat()
    except FileNotFoundError:
        raise InputError(f"image {source} does not exist") from None
    except OSError as error:
        raise InputError(f"cannot read image {source}: {error.strerror}") from None
    text = repr((DECODING, str(source.absolute()), facts.st_size, facts.st_mtime_ns, settings))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def cached(folder: Path, key: str, make: Callable[[], Tensor]) -> Tensor:
    """Returns the pixels (3, H, W) uint8 cached under ``key``, and makes and stores them if they are absent or damaged.

    They are stored uncompressed, in ``.npy`` files, and read back as ``make`` returned them. Several processes may do
    this at once, since a file is whole or absent.

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
