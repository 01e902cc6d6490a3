"""Results as a picture: each query with what was found."""

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from PIL import Image

from hgsl.common.errors import InputError
from hgsl.data.files.images import read_image
from hgsl.evaluation.show.pictures import INK, WRONG, Tile, write_sheet
from hgsl.search.index import Hit, SearchIndex

SIDE = 160
GRAY = "#a8a29e"


def write_query_sheet(
    path: str | os.PathLike[str], index: SearchIndex, queries: Sequence[Path], found: Sequence[Sequence[Hit]]
) -> None:
    """Writes a picture with a line for each query; a query without a match says so.

    Args:
        path: A file whose suffix Pillow knows, such as ``.png``.
        index: That was searched.
        queries: Photos.
        found: What it found for each.
    """
    lines = []
    for query, hits in zip(queries, found, strict=True):
        refused = not hits or index.accepts(hits) is False
        said = "nothing found" if not hits else "no match" if refused else "query"
        tiles = [Tile(partial(_picture, query), said, query.name, WRONG if refused else INK)]
        for hit in hits:
            title = f"{hit.similarity:.3f}  {hit.label or ''}"
            color = GRAY if refused else INK
            tiles.append(Tile(partial(_picture, index.path(hit.id)), title, Path(hit.path).name, color))
        lines.append(tiles)
    write_sheet(path, lines, max(len(hits) for hits in found), side=SIDE)


def _picture(path: Path) -> Image.Image:
    try:
        return read_image(path, SIDE)
    except InputError:  # gone or changed since it was indexed; the others are still worth showing
        return Image.new("RGB", (SIDE, SIDE), GRAY)
