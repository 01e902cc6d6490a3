"""Image decoding: a file becomes an upright 8-bit RGB image, or an error that names it."""

import struct
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import PHOTOMETRIC_INTERPRETATION, SAMPLEFORMAT
from torch import Tensor

from hgsl.common.errors import InputError
from hgsl.common.extras import require
from hgsl.common.locations import Location, local_or_uri, name_of, open_image

# By suffix, so that listing a folder opens no file; a file is read by its bytes, whatever its suffix. Pillow reads all
# of these without a plugin, except HEIC, which needs the extra [heic].
JPEG_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".jp2", ".j2k", ".jpx", ".jpf", ".jpc", ".j2c")
NETPBM_SUFFIXES = (".ppm", ".pgm", ".pbm", ".pnm")
TIFF_SUFFIXES = (".tif", ".tiff")
OTHER_SUFFIXES = (".png", ".apng", ".webp", ".avif", ".bmp", ".dib", ".gif", ".tga", ".qoi", ".sgi", ".pcx")
HEIF_SUFFIXES = (".heic", ".heif", ".hif")
IMAGE_SUFFIXES = frozenset((*JPEG_SUFFIXES, *NETPBM_SUFFIXES, *TIFF_SUFFIXES, *OTHER_SUFFIXES, *HEIF_SUFFIXES))
HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")

# What Pillow raises for a damaged file, depending on its format and on where it is damaged.
DAMAGED = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, Image.DecompressionBombError)

MAX_ASPECT = 100  # aspect ratio above which an image is refused
# Of sensors, whose values may be stored in wider integers, and above 16 every one, so that 128 gray levels are left.
BIT_DEPTHS = (8, 10, 12, 14, *range(16, 33))


class UnreadableImageError(InputError):
    """An image file that is there, but damaged or no image."""


def check_shape(width: int, height: int) -> None:
    """Checks the aspect ratio of an image.

    Raises:
        InputError: One side is more than ``MAX_ASPECT`` times the other; the message states both.
    """
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise InputError(f"of its {width:,} x {height:,} pixels, one side is more than {MAX_ASPECT} times the other")


def open_with_pillow(file: Path | BinaryIO, formats: tuple[str, ...] | None = None) -> ImageFile:
    """``Image.open``, which also opens HEIC where the extra [heic] is installed.

    Args:
        file: An image.
        formats: Whose decoders are tried; None stands for all of Pillow's, and for HEIC.

    Raises:
        InputError: It is a HEIC image, and the extra is missing.
        OSError, ...: It cannot be opened, see ``DAMAGED``.
    """
    try:
        return Image.open(file, formats=formats)
    except UnidentifiedImageError:
        if formats is not None or not _is_heif(file):
            raise
        require("heic", "a HEIC image")
        import_module("pillow_heif").register_heif_opener()
        return Image.open(file)


def _is_heif(file: Path | BinaryIO) -> bool:
    if isinstance(file, Path):
        with file.open("rb") as opened:
            return _is_heif(opened)
    file.seek(0)
    head = file.read(12)
    file.seek(0)
    return head[4:8] == b"ftyp" and head[8:] in HEIF_BRANDS


def read_image(location: Location, min_side: int | None = None) -> Image.Image:
    """Reads an image file as upright 8-bit RGB.

    Args:
        location: A path, an address such as ``s3://bucket/a.jpg``, or a row of a Parquet file.
        min_side: Shortest side, in pixels, that is enough: a larger JPEG is then decoded at a half, a quarter or an
            eighth of its size, never below ``min_side``, in a fraction of the time.

    Raises:
        UnreadableImageError: The file is not an image, damaged, or refused by :func:`decode`; the message names it.
        InputError: The file is missing, or cannot be fetched; the message names it.
    """
    location = local_or_uri(location) if isinstance(location, str) else location
    try:
        file = open_image(location)
    except FileNotFoundError:
        raise InputError(f"image {name_of(location)} does not exist") from None
    try:
        with open_with_pillow(file) as image:
            if min_side is not None:
                image.draft("RGB", (min_side, min_side))
            return decode(image)
    except FileNotFoundError:
        raise InputError(f"image {name_of(location)} does not exist") from None
    except UnidentifiedImageError:
        reason = "the file is empty" if _is_empty(file) else "the file is no image, or of an unsupported format"
    except Image.DecompressionBombError:
        reason = f"it has more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels: save it smaller"
    except DAMAGED as error:
        text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        reason = " ".join(text.split()) or type(error).__name__
    raise UnreadableImageError(f"cannot read image {name_of(location)}: {reason}")


def _is_empty(file: Path | BinaryIO) -> bool:
    if isinstance(file, Path):
        return not file.stat().st_size
    file.seek(0)
    return not file.read(1)


def decode(image: Image.Image) -> Image.Image:
    """An image, just opened or in memory, as 8-bit RGB, rotated according to its EXIF orientation.

    Transparent pixels become white. Gray values of more than 8 bits are scaled: integers by the smallest of
    ``BIT_DEPTHS`` that holds their maximum, since few files state their bit depth; floats from 0 to 1 by 255; other
    floats, and integers with negative values, from their minimum to their maximum.

    Raises:
        InputError: The shape is extreme, values are not finite, or 16-bit color uses at most 12 bits.
        OSError, ValueError, ...: The file is damaged, see ``DAMAGED``.
    """
    check_shape(*image.size)
    stored = str(getattr(image, "tile", None) or "")  # Pillow's description of the stored pixels, such as RGB;16B
    tags = getattr(image, "tag_v2", {})
    white_is_zero = tags.get(PHOTOMETRIC_INTERPRETATION) == 0  # Pillow inverts up to 8 bits only
    is_signed_byte = image.mode == "L" and tags.get(SAMPLEFORMAT) == (2,)  # which Pillow returns as unsigned
    image = ImageOps.exif_transpose(image)
    image.load()
    if image.mode == "F" or image.mode.startswith("I") or is_signed_byte:
        values = np.asarray(image).view(np.int8) if is_signed_byte else np.asarray(image)
        values = values.view(np.uint32) if "I;32N" in stored else values  # unsigned, but Pillow returns it as signed
        pixels = scale_to_bytes(values)
        return Image.fromarray(255 - pixels if white_is_zero else pixels).convert("RGB")
    if ";16" in stored and _brightest(image) < 16:  # Pillow keeps the upper 8 bits of each channel
        raise InputError("16-bit color of 12 bits or fewer, which would lose all but 16 levels: convert it to 8 bits")
    return to_rgb(image)


def to_rgb(image: Image.Image) -> Image.Image:
    """A loaded image of 8 bits per channel as RGB; transparent pixels become white."""
    if image.mode == "RGB":
        return image
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def to_pixels(image: Image.Image) -> Tensor:
    """Returns an RGB image as a (3, H, W) uint8 tensor with the memory layout of the decoded image, (H, W, 3).

    Raises:
        InputError: The image is not RGB, such as a grayscale one.
    """
    if image.mode != "RGB":
        raise InputError(f"an image of mode {image.mode!r} is not RGB: decode it with decode")
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)  # (H, W, 3) -> (3, H, W)


def scale_to_bytes(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Gray values (H, W) of any integer or float type as uint8, scaled as in :func:`decode`.

    >>> scale_to_bytes(np.array([[0, 4095]], np.uint16))
    array([[  0, 255]], dtype=uint8)

    Raises:
        InputError: A value is not finite.
    """
    low, high = values.min(), values.max()
    if not np.isfinite([low, high]).all():
        raise InputError("some of its pixels are not finite numbers")
    if values.dtype.kind in "iu" and low >= 0:
        depth = next(bits for bits in BIT_DEPTHS if int(high) < 1 << bits)
        return (values >> (depth - 8)).astype(np.uint8)
    if low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    span = float(high) - float(low) or 1.0
    return ((values.astype(np.float64) - float(low)) * (255 / span) + 0.5).astype(np.uint8)


def _brightest(image: Image.Image) -> int:
    """The maximum of the color channels."""
    bands = [band for band in image.getbands() if band != "A"]
    return max(int(np.asarray(image.getchannel(band)).max()) for band in bands)
