"""The page of duplicates: one HTML file with every group of images that show the same, to look at and to mark."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from hgsl.common.files import write_text
from hgsl.evaluation.show.html import render_page
from hgsl.evaluation.show.pictures import LoadImage, embed_pictures

SCRIPTS = ("base", "marks", "pair_viewer", "duplicates")
MAX_GROUPS, MAX_IMAGES = 1000, 24  # groups on the page, and images of a group
MAX_PICTURES, MAX_LARGE = 2000, 400

Pair = tuple[int, int, str, float | None]  # two images, how the pair was found, and its similarity


class ImageGroup(NamedTuple):
    """Images that show the same, the one of them to keep, and whether they lie in several splits."""

    rows: tuple[int, ...]
    kept: int
    is_across: bool


@dataclass(frozen=True)
class DuplicatePage:
    """Contents of the page besides its groups.

    Attributes:
        title: Its heading.
        key: What distinguishes its marks from those of other pages, such as the hash of a split.
        notes: Lines below the heading.
        paths: Row -> path.
        labels: Row -> label.
        class_names: Label -> name.
        splits: Row -> split.
        load_image: Row -> image.
    """

    title: str
    key: str
    notes: Sequence[str]
    paths: Sequence[str]
    labels: Sequence[int]
    class_names: Sequence[str]
    splits: Sequence[str]
    load_image: LoadImage


def write_duplicate_page(
    path: str | os.PathLike[str], groups: Sequence[ImageGroup], pairs: Sequence[Pair], page: DuplicatePage
) -> None:
    """Writes the page; of many groups, the first ``MAX_GROUPS``.

    Args:
        path: The file to write.
        groups: In the order in which they are shown.
        pairs: The pairs that make the groups.
        page: Heading, names and pictures.
    """
    shown = [group._replace(rows=_first(group)) for group in groups[:MAX_GROUPS]]
    rows = [row for group in shown for row in group.rows]
    number = {row: position for position, row in enumerate(rows)}
    thumbnails, large = embed_pictures(rows, page.load_image, MAX_PICTURES, MAX_LARGE, progress=True)
    data: dict[str, Any] = {
        "key": page.key,
        "classes": dict(enumerate(page.class_names)),
        "images": [[str(row), page.labels[row], page.paths[row]] for row in rows],
        "splits": [page.splits[row] for row in rows],
        "pictures": thumbnails,
        "large": large,
        "groups": [
            {
                "images": [number[row] for row in group.rows],
                "kept": number[group.kept],
                "across": group.is_across,
                "pairs": [
                    [number[one], number[other], reason if score is None else f"similarity {score:.3f}"]
                    for one, other, reason, score in pairs
                    if one in group.rows and other in group.rows
                ],
            }
            for group in shown
        ],
    }
    omitted = f"the first {MAX_GROUPS:,} of {len(groups):,} groups are shown" if len(groups) > MAX_GROUPS else ""
    text = render_page("duplicates.html", SCRIPTS, data, title=page.title, notes=page.notes, omitted=omitted)
    write_text(path, text)


def _first(group: ImageGroup) -> tuple[int, ...]:
    """The images of a group that are shown, with the one to keep."""
    rows = group.rows[:MAX_IMAGES]
    return rows if group.kept in rows else (group.kept, *rows[1:])
