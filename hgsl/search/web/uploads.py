"""From the bytes that a stranger sends to a picture, or a refusal.

The type is read from the bytes, never believed; only the decoders of five formats are ever tried. Width and height are
in the head of a file and are checked before a single pixel is decoded, so that a bomb never goes off.
"""

import io
from typing import NamedTuple

from PIL import Image, ImageOps

from hgsl.data.files.images import DAMAGED, to_rgb
from hgsl.search.web.refusal import Refusal

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
MAX_BYTES = 20 << 20
MAX_PIXELS = 50_000_000  # a large camera's photo; 150 MB once decoded
MIN_SIDE = 2  # pixels of what is searched


class Box(NamedTuple):
    """A part of an upright photo, in shares of its width and height from the upper left corner."""

    left: float
    top: float
    right: float
    bottom: float


def parse_box(text: str | None) -> Box | None:
    """``x1,y1,x2,y2`` -> the box.

    Raises:
        Refusal: Not four numbers from 0 to 1, or nothing between them.
    """
    if text is None:
        return None
    try:
        left, top, right, bottom = (float(part) for part in text.split(","))
    except ValueError:
        raise Refusal(422, "box must be four numbers x1,y1,x2,y2: shares of the photo's width and height") from None
    if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
        raise Refusal(422, "box must lie inside the photo: 0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1")
    return Box(left, top, right, bottom)


def decode(content: bytes, box: Box | None, min_side: int) -> Image.Image:
    """Decodes a photo: upright, RGB, cut to the box.

    Args:
        content: The file as it was sent.
        box: What of it is searched, or None for all.
        min_side: The shortest side, in pixels, that is enough for what is searched: a JPEG is not decoded larger.

    Raises:
        Refusal: 415 it is none of ``FORMATS``; 413 it has too many pixels; 422 it is damaged, or the box has no pixels.
    """
    try:
        return _decode(content, box, min_side)
    except Image.UnidentifiedImageError:
        raise Refusal(415, f"this is not a photo: {', '.join(FORMATS)} are understood") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _too_many_pixels() from None
    except (*DAMAGED, MemoryError, OverflowError, KeyError, TypeError, AttributeError, RuntimeError):
        raise Refusal(422, "the photo is damaged: it cannot be decoded") from None


def _decode(content: bytes, box: Box | None, min_side: int) -> Image.Image:
    with Image.open(io.BytesIO(content), formats=FORMATS) as image:
        if image.width * image.height > MAX_PIXELS:
            raise _too_many_pixels()
        part = min(1.0, 1.0 if box is None else min(box.right - box.left, box.bottom - box.top))
        side = max(1, min(round(min_side / part), *image.size))
        image.draft("RGB", (side, side))
        upright = to_rgb(ImageOps.exif_transpose(image))
    return upright if box is None else _cut(upright, box)


def _cut(image: Image.Image, box: Box) -> Image.Image:
    width, height = image.size
    left, top = round(box.left * width), round(box.top * height)
    right, bottom = round(box.right * width), round(box.bottom * height)
    if right - left < MIN_SIDE or bottom - top < MIN_SIDE:
        raise Refusal(422, f"the box holds less than {MIN_SIDE} x {MIN_SIDE} pixels: draw a larger one")
    return image.crop((left, top, right, bottom))


def _too_many_pixels() -> Refusal:
    return Refusal(413, f"the photo has more than {MAX_PIXELS // 1_000_000} million pixels: send a smaller one")
