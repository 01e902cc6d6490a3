"""Cache of resized images, so that every epoch but the first reads pixels instead of decoding JPEG."""

import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hgsl.common.errors import InputError
from hgsl.common.files import atomic_path
from hgsl.common.locations import Location, name_of
from hgsl.data.files.parquet_images import ParquetImage

DECODING_VERSION = 2  # of hgsl.common.images.decode, part of every key


def default_cache_dir() -> Path:
    """``$XDG_CACHE_HOME/hgsl/resized``, by default ``~/.cache/hgsl/resized``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hgsl" / "resized"


def file_key(location: Location, *settings: object, states: Mapping[str, str] | None = None) -> str:
    """The cache key of a processed image: a hash of its location, of the state of its file, and of ``settings``.

    The state of a local file is its size and modification time.

    Args:
        location: Of the image.
        settings: What else determines the result.
        states: Address -> state of the remote files, of :func:`hgsl.common.locations.remote_states`.

    Raises:
        InputError: There is no such file, or it cannot be read.
    """
    if isinstance(location, Path):
        identity = _file_identity(location)
    elif isinstance(location, str):
        if location not in (states or {}):
            raise InputError(f"image {name_of(location)} does not exist")
        identity = (name_of(location), (states or {})[location])
    else:
        assert isinstance(location, ParquetImage)  # the only stored images of a data set
        file, _, row = location.images.position(location.id)
        identity = (*_file_identity(location.images.files[file]), row)
    text = repr((DECODING_VERSION, *identity, settings))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _file_identity(path: Path) -> tuple[object, ...]:
    try:
        status = path.stat()
    except FileNotFoundError:
        raise InputError(f"image {path} does not exist") from None
    except OSError as error:
        raise InputError(f"cannot read image {path}: {error.strerror}") from None
    return str(path.absolute()), status.st_size, status.st_mtime_ns


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
