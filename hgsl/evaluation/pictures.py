"""Images as small pictures: thumbnails for a page, and a contact sheet of queries with their neighbours."""

import base64
import io
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

from hgsl.common.files import atomic_path
from hgsl.evaluation.inspection import Neighbours
from hgsl.evaluation.vectors import Ints

LoadImage = Callable[[int], Image.Image]

RIGHT, WRONG, INK, PAPER = "#15803d", "#c2410c", "#1c1917", "#ffffff"


def thumbnail(image: Image.Image, side: int = 112, quality: int = 60) -> str:
    """Returns a square centre crop as base64 text of a WebP file."""
    buffer = io.BytesIO()
    ImageOps.fit(image.convert("RGB"), (side, side)).save(buffer, "WEBP", quality=quality)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def write_contact_sheet(
    path: str | os.PathLike[str],
    rows: Sequence[int],
    query_ids: Ints,
    query_labels: Ints,
    neighbours: Neighbours,
    load_image: LoadImage,
    class_names: Sequence[str],
    *,
    side: int = 160,
) -> None:
    """Writes a picture with a line for each of ``rows``: the query, then its neighbours framed right or wrong.

    Args:
        path: A file whose suffix Pillow knows, such as ``.png``.
        rows: Which queries, as rows of ``query_ids``.
        side: Pixels of one picture's side.
    """
    gap, caption = side // 12, side // 4
    font = ImageFont.load_default(size=side // 11)
    columns = neighbours.ids.shape[1]
    left = side + 3 * gap  # the query stands a little apart
    size = (left + columns * (side + gap) + gap, gap + len(rows) * (side + caption + gap))
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)

    def place(image_id: int, x: int, y: int, color: str, first: str, second: str) -> None:
        border = side // 24
        draw.rectangle([x, y, x + side - 1, y + side - 1], fill=color)
        inner = side - 2 * border
        sheet.paste(ImageOps.fit(load_image(image_id).convert("RGB"), (inner, inner)), (x + border, y + border))
        for line, text in enumerate((first, second)):
            draw.text((x, y + side + line * caption // 2), _fit(draw, text, font, side), fill=color, font=font)

    for line, row in enumerate(rows):
        y = gap + line * (side + caption + gap)
        place(int(query_ids[row]), gap, y, INK, "query", class_names[query_labels[row]])
        for column in range(columns):
            if neighbours.ids[row, column] < 0:
                continue
            hit = bool(neighbours.hits[row, column])
            score = f"{'right' if hit else 'wrong'}  {neighbours.scores[row, column]:.3f}"
            name = class_names[neighbours.labels[row, column]]
            x = left + column * (side + gap)
            place(int(neighbours.ids[row, column]), x, y, RIGHT if hit else WRONG, score, name)
    with atomic_path(Path(path)) as temporary:
        sheet.save(temporary)


def _fit(draw: ImageDraw.ImageDraw, text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width: int) -> str:
    """The text, cut to a width in pixels."""
    if draw.textlength(text, font=font) <= width:
        return text
    while text and draw.textlength(text + "…", font=font) > width:
        text = text[:-1]
    return text + "…"
