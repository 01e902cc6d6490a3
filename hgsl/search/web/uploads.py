"""Decoding of images for the server, limited in pixels, shape and memory, and conversion of uploads to model input.

The format is read from the bytes, never from a header or a name, and of an upload only the decoders of five formats are
tried. Width and height are at the start of a file and are checked before any pixel is decoded, so a decompression bomb
is refused.
"""

import io
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from PIL.ImageFile import ImageFile
from torch import Tensor

from hgsl.common.errors import InputError
from hgsl.common.images import DAMAGED, check_shape, decode, open_with_pillow, to_rgb
from hgsl.search.web.errors import RequestError

if TYPE_CHECKING:
    from hgsl.search.encoder import Encoder

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
MAX_BYTES = 20 << 20
MAX_PIXELS = 50_000_000  # an image of a large camera
MAX_PIXELS_HEAVY = 24_000_000  # of WebP and of 16 bits per channel, which take twice the memory
MAX_REQUEST_MEMORY = 512 << 20  # bytes that a search takes for decoding; a test measures it
STRIP_PIXELS = 1 << 20  # converted to RGB at a time
MODES_8_BIT = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK")
MIN_SIDE = 2  # pixels of the part that is searched

# Errors of Pillow's decoders and of torch's resize for damaged or malformed files, besides those of ``DAMAGED``.
FAILURES = (*DAMAGED, MemoryError, OverflowError, KeyError, TypeError, AttributeError, RuntimeError, ArithmeticError)


class Box(NamedTuple):
    """A part of an upright image, as fractions of its width and height from the upper left corner."""

    left: float
    top: float
    right: float
    bottom: float


def parse_box(text: str | None) -> Box | None:
    """Parses ``x1,y1,x2,y2``.

    Raises:
        RequestError: Not four numbers from 0 to 1, or an empty box.
    """
    if text is None:
        return None
    try:
        left, top, right, bottom = (float(part) for part in text.split(","))
    except ValueError:
        raise RequestError(422, "box must be four numbers x1,y1,x2,y2: fractions of the width and height") from None
    if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
        raise RequestError(422, "box must lie inside the image: 0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1")
    return Box(left, top, right, bottom)


def prepare(content: bytes, box: Box | None, encoder: "Encoder") -> Tensor:
    """Converts an uploaded file to model input, (3, S, S).

    Args:
        content: The file.
        box: The part to search, or None for the whole image.
        encoder: The model and its preprocessing.

    Raises:
        RequestError: 415 a format other than ``FORMATS``; 413 too many pixels; 422 damaged, of a shape that the
            preprocessing refuses, or a box without pixels.
    """
    try:
        return encoder.transform(decode_bounded(io.BytesIO(content), box, encoder.side, FORMATS))
    except Image.UnidentifiedImageError:
        raise RequestError(415, f"this is not an image, or its format is not one of {', '.join(FORMATS)}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _too_many_pixels(MAX_PIXELS) from None
    except InputError as error:
        raise RequestError(422, f"the image cannot be searched: {error}") from None
    except FAILURES:
        raise RequestError(422, "the image is damaged: it cannot be decoded") from None


def decode_bounded(
    file: Path | BinaryIO, box: Box | None, min_side: int, formats: tuple[str, ...] | None = None
) -> Tensor:
    """Decodes a file to upright RGB pixels (3, H, W) of the box, with at most ``MAX_REQUEST_MEMORY`` bytes.

    Args:
        file: An image.
        box: A part of it, or None for the whole image.
        min_side: Shortest side of the part, in pixels, that is enough: a larger JPEG is decoded no larger than that.
        formats: Whose decoders are tried; None stands for all of Pillow's.

    Raises:
        RequestError: It has too many pixels.
        InputError, ...: Its shape is extreme, or the file is damaged, see ``FAILURES``.
    """
    with open_with_pillow(file, formats) as image:
        limit = MAX_PIXELS if _is_light(image) else MAX_PIXELS_HEAVY
        if image.width * image.height > limit:
            raise _too_many_pixels(limit)
        check_shape(*image.size)
        part = min(1.0, 1.0 if box is None else min(box.right - box.left, box.bottom - box.top))
        side = max(1, min(round(min_side / part), *image.size))
        image.draft("RGB", (side, side))
        if not _is_8_bit(image):
            upright = decode(image)
            return _to_pixels(upright, _region(upright, box))
        ImageOps.exif_transpose(image, in_place=True)
        return _to_pixels(image, _region(image, box))


def _is_8_bit(image: ImageFile) -> bool:
    """Whether each pixel is stored in 8 bits per channel, so that it is converted independently of the others."""
    return image.mode in MODES_8_BIT and ";16" not in str(image.tile)


def _is_light(image: ImageFile) -> bool:
    """Whether decoding takes at most 8 bytes per pixel."""
    return _is_8_bit(image) and image.format != "WEBP"


def _region(image: Image.Image, box: Box | None) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of the box in pixels."""
    width, height = image.size
    if box is None:
        return 0, 0, width, height
    left, top = round(box.left * width), round(box.top * height)
    right, bottom = round(box.right * width), round(box.bottom * height)
    if right - left < MIN_SIDE or bottom - top < MIN_SIDE:
        raise RequestError(422, f"the box holds less than {MIN_SIDE} x {MIN_SIDE} pixels: draw a larger one")
    return left, top, right, bottom


def _to_pixels(image: Image.Image, region: tuple[int, int, int, int]) -> Tensor:
    """Converts a region to RGB pixels (3, H, W), in strips: whole intermediate images would take 16 bytes per pixel."""
    left, top, right, bottom = region
    pixels = np.empty((bottom - top, right - left, 3), np.uint8)
    rows = max(1, STRIP_PIXELS // (right - left))
    for start in range(top, bottom, rows):
        end = min(start + rows, bottom)
        pixels[start - top : end - top] = np.asarray(to_rgb(image.crop((left, start, right, end))))
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _too_many_pixels(limit: int) -> RequestError:
    return RequestError(413, f"the image has more than {limit // 1_000_000} million pixels: use a smaller one")
