"""Contact sheet of a search: one row per query with its nearest images."""

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from PIL import Image

from hgsl.common.errors import InputError
from hgsl.common.images import read_image
from hgsl.common.locations import Location, name_of
from hgsl.evaluation.show.pictures import GRAY, INK, WRONG, Tile, missing_picture, write_sheet
from hgsl.search.index import SearchIndex
from hgsl.search.stores.protocol import Hit

SIDE = 160


def write_query_sheet(
    path: str | os.PathLike[str], index: SearchIndex, queries: Sequence[Path | str], results: Sequence[Sequence[Hit]]
) -> None:
    """Writes an image file with one row per query; a query without a match is marked.

    Args:
        path: A file with a suffix that Pillow supports, such as ``.png``.
        index: The index that was searched.
        queries: The query images, or their addresses.
        results: The hits of each query.
    """
    rows = [_sheet_row(index, query, hits) for query, hits in zip(queries, results, strict=True)]
    write_sheet(path, rows, max(len(hits) for hits in results), side=SIDE)


def _sheet_row(index: SearchIndex, query: Path | str, hits: Sequence[Hit]) -> list[Tile]:
    rejected = not hits or index.accepts(hits) is False
    title = "nothing found" if not hits else "no match" if rejected else "query"
    tiles = [Tile(partial(_load, query), title, name_of(query).rpartition("/")[2], WRONG if rejected else INK)]
    for hit in hits:
        load = partial(_load, index.path(hit.id))
        title = f"{hit.similarity:.3f}  {hit.label or ''}"
        tiles.append(Tile(load, title, Path(hit.path).name, GRAY if rejected else INK))
    return tiles


def _load(location: Location) -> Image.Image:
    try:
        return read_image(location, SIDE)
    except InputError:  # deleted or changed since it was indexed; the other images are shown all the same
        return missing_picture(SIDE)
