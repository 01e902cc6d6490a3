"""A file becomes an upright RGB image, or an error that names it."""

import struct
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from hgsl.common.errors import InputError

# By suffix, so that listing a folder opens no file. Every one of these is read by Pillow without a plugin.
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})

# What Pillow raises for a damaged file, by format and by place of the damage.
DAMAGED = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, Image.DecompressionBombError)


def read_image(path: Path, min_side: int | None = None) -> Image.Image:
    """Reads an image as RGB, turned as its EXIF orientation says.

    Args:
        path: The file.
        min_side: The shortest side, in pixels, that is enough: a larger JPEG is then decoded at a half, a quarter or
            an eighth of its size, never below ``min_side``, which takes a fraction of the time.

    Raises:
        InputError: The file is missing, is no image, or is damaged; the message names it.
    """
    try:
        with Image.open(path) as image:
            if min_side is not None:
                image.draft("RGB", (min_side, min_side))
            return to_rgb(ImageOps.exif_transpose(image))
    except FileNotFoundError:
        raise InputError(f"image {path} does not exist") from None
    except DAMAGED as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"cannot read image {path}: {reason} (replace the file or take it off the list; "
            "tools/prepare_dataset.py --audit finds all such files)"
        ) from None


def to_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow image as RGB: what is transparent turns white, 16-bit gray keeps its upper 8 bits."""
    if image.mode == "RGB":
        image.load()
        return image
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")
