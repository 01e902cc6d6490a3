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

DECODING_VERSION = 2  # of hgsl.common.images.decode, part of every key


def default_cache_dir() -> Path:
    """``$XDG_CACHE_HOME/hgsl/resized``, by default ``~/.cache/hgsl/resized``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hgsl" / "resized"


def file_key(source: Path, *settings: object) -> str:
    """The cache key of a processed file: a hash of its path, size, modification time and ``settings``.

    Raises:
        InputError: There is no such file, or it cannot be read.
    """
    try:
        status = source.stat()
    except FileNotFoundError:
        raise InputError(f"image {source} does not exist") from None
    except OSError as error:
        raise InputError(f"cannot read image {source}: {error.strerror}") from None
    text = repr((DECODING_VERSION, str(source.absolute()), status.st_size, status.st_mtime_ns, settings))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def cached(folder: Path, key: str, make: Callable[[], Tensor]) -> Tensor:
    """Returns the pixels (3, H, W) uint8 cached under ``key``; calls ``make`` and stores them if absent or damaged.

    They are stored uncompressed, in ``.npy`` files, and read back as ``make`` returned them. Several processes may
    share the folder, since files are written atomically.

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
