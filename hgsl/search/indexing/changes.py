"""The difference between the images of an index and those it should hold."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hgsl.search.stores.protocol import ImageFile, ImageRow


@dataclass(frozen=True)
class Changes:
    """What an update has to do.

    Attributes:
        kept: Number -> image, as it should be.
        missing: Images to embed.
        relabeled: Number of an unchanged image file -> the image with its new label and values.
        deleted: Numbers of images that are gone, or were replaced.
    """

    kept: dict[int, ImageRow]
    missing: list[ImageRow]
    relabeled: dict[int, ImageRow]
    deleted: list[int]


def changes_between(stored: Mapping[int, ImageRow], wanted: Sequence[ImageRow]) -> Changes:
    """Compares the stored images, among which an interrupted update may have left copies, with the wanted ones."""
    numbers: dict[ImageFile, list[int]] = {}
    for number, row in stored.items():
        numbers.setdefault(row.file, []).append(number)
    changes = Changes({}, [], {}, [])
    for row in wanted:
        candidates = numbers.get(row.file, [])
        same = next((number for number in candidates if stored[number] == row), None)
        if same is not None:
            changes.kept[same] = row
        elif candidates:
            changes.relabeled[candidates[0]] = row
        else:
            changes.missing.append(row)
    changes.deleted.extend(number for number in stored if number not in changes.kept)
    return changes
