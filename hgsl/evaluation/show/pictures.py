"""Thumbnails for a page, and contact sheets of queries with their neighbors."""

import base64
import io
import os
import unicodedata
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from hgsl.common.errors import InputError
from hgsl.common.files import atomic_path
from hgsl.common.progress import progress_bar
from hgsl.evaluation.knn.vectors import Ints
from hgsl.evaluation.neighbors import Neighbors
from hgsl.evaluation.show.fonts import font_for

LoadImage = Callable[[int], Image.Image]

RIGHT, WRONG, INK, GRAY, PAPER = "#15803d", "#c2410c", "#1c1917", "#a8a29e", "#ffffff"


def thumbnail(image: Image.Image, side: int = 112, quality: int = 60) -> str:
    """Returns a square center crop as base64 text of a WebP file."""
    buffer = io.BytesIO()
    ImageOps.fit(image.convert("RGB"), (side, side)).save(buffer, "WEBP", quality=quality)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def picture(image: Image.Image, side: int = 320, quality: int = 70) -> str:
    """Returns a whole image, of at most ``side`` pixels a side, as base64 text of a WebP file."""
    small = image.convert("RGB")
    small.thumbnail((side, side))
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=quality)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def missing_picture(side: int) -> Image.Image:
    """Returns the gray square that stands for an image which cannot be read."""
    return Image.new("RGB", (side, side), GRAY)


def embed_pictures(
    images: Sequence[int], load_image: LoadImage, max_thumbnails: int, max_large: int, progress: bool
) -> tuple[list[str], list[str]]:
    """Returns thumbnails of the first images, and larger pictures of the very first ones; each is loaded once."""
    thumbnails, large = [], []
    bar = progress_bar(images[:max_thumbnails], shown=progress, desc="thumbnails", unit="image")
    for number, image in enumerate(bar):
        loaded = load_image(image)
        thumbnails.append(thumbnail(loaded))
        if number < max_large:
            large.append(picture(loaded))
    return thumbnails, large


class Tile(NamedTuple):
    """One image of a sheet, with the two lines of text below it."""

    load: Callable[[], Image.Image]
    first: str
    second: str
    color: str = INK


def write_contact_sheet(
    path: str | os.PathLike[str],
    rows: Sequence[int],
    query_ids: Ints,
    query_labels: Ints,
    neighbors: Neighbors,
    load_image: LoadImage,
    class_names: Sequence[str],
    *,
    side: int = 160,
) -> None:
    """Writes an image with one row for each of ``rows``: the query, then its neighbors, framed as right or wrong.

    Args:
        path: A file with a suffix that Pillow supports, such as ``.png``.
        rows: The queries, as rows of ``query_ids``.
        side: Pixels of one image's side.
    """

    def line(row: int) -> list[Tile]:
        query = int(query_ids[row])
        tiles = [Tile(partial(load_image, query), "query", class_names[query_labels[row]])]
        for column in np.flatnonzero(neighbors.present[row]):
            image, hit = int(neighbors.ids[row, column]), bool(neighbors.hits[row, column])
            score = f"{'right' if hit else 'wrong'}  {neighbors.scores[row, column]:.3f}"
            name = class_names[neighbors.labels[row, column]]
            tiles.append(Tile(partial(load_image, image), score, name, RIGHT if hit else WRONG))
        return tiles

    write_sheet(path, [line(row) for row in rows], neighbors.ids.shape[1], side=side)


def write_sheet(
    path: str | os.PathLike[str], lines: Sequence[Sequence[Tile]], columns: int, *, side: int = 160
) -> None:
    """Writes an image with one row per query: the query, set apart, then up to ``columns`` neighbors.

    Args:
        path: A file with a suffix that Pillow supports, such as ``.png``.
        lines: One per query: the query and its neighbors.
        side: Pixels of one image's side.

    Raises:
        InputError: Pillow does not support the suffix, or the format has no images of so many pixels.
    """
    gap, caption = side // 12, side // 4
    left = side + 3 * gap
    size = (left + columns * (side + gap) + gap, gap + len(lines) * (side + caption + gap))
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)

    def paste(tile: Tile, x: int, y: int) -> None:
        border = side // 24
        draw.rectangle([x, y, x + side - 1, y + side - 1], fill=tile.color)
        inner = side - 2 * border
        sheet.paste(ImageOps.fit(tile.load().convert("RGB"), (inner, inner)), (x + border, y + border))
        for line, text in enumerate((tile.first, tile.second)):
            # Pillow measures single lines only; in names from a Mac, a letter and its accent are two characters.
            text = unicodedata.normalize("NFC", " ".join(text.splitlines()))
            font = font_for(text, side // 12)
            text = _fit(draw, text, font, side)
            draw.text((x, y + side + line * caption // 2), text, fill=tile.color, font=font)

    for number, tiles in enumerate(lines):
        y = gap + number * (side + caption + gap)
        paste(tiles[0], gap, y)
        for column, tile in enumerate(tiles[1:]):
            paste(tile, left + column * (side + gap), y)
    try:
        with atomic_path(Path(path)) as temporary:
            sheet.save(temporary)
    except (ValueError, OverflowError, OSError) as error:  # an unknown suffix, or too many pixels for the format
        if isinstance(error, OSError) and error.errno is not None:  # such as a full disk
            raise
        raise InputError(
            f"cannot write an image of {sheet.width:,} x {sheet.height:,} pixels to {path} ({error}): use a name such "
            "as sheet.png, or show fewer images"
        ) from None


def _fit(draw: ImageDraw.ImageDraw, text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """The text, cut to a width in pixels."""
    if draw.textlength(text, font=font) <= width:
        return text
    while text and draw.textlength(text + "…", font=font) > width:
        text = text[:-1]
    return text + "…"
