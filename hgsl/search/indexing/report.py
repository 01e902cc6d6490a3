"""Summary of one call of ``build_index``."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hgsl.search.indexing.image_folder import FolderListing
from hgsl.search.storage.layout import ImageTable


@dataclass(frozen=True)
class IndexReport:
    """Summary of one call of :func:`build_index`.

    Attributes:
        images: Images in the index.
        new, changed, unchanged, dropped: Image files compared with the previous snapshot, broken ones included.
        resumed: Images whose vectors were left by an interrupted run.
        broken: Path -> why an image could not be read; it is not in the index, and the next call tries it again.
        other_files: Suffix -> number of files that are not images.
        record: The contents of ``index.json``.
        notes: Messages to the user.
    """

    images: int
    new: int
    changed: int
    unchanged: int
    dropped: int
    resumed: int
    broken: Mapping[str, str]
    other_files: Mapping[str, int]
    record: Mapping[str, Any]
    notes: list[str] = field(default_factory=list)


def make_report(
    previous: ImageTable | None,
    listing: FolderListing,
    table: ImageTable,
    resumed: int,
    record: Mapping[str, Any],
    notes: list[str],
) -> IndexReport:
    """Compares the new image table with the previous one."""
    previous_files = set() if previous is None else {*previous.images, *previous.broken}
    previous_paths, paths = {image.path for image in previous_files}, {image.path for image in listing.images}
    unchanged = sum(image in previous_files for image in listing.images)
    new = len(paths - previous_paths)
    return IndexReport(
        images=len(table.images),
        new=new,
        changed=len(listing.images) - unchanged - new,
        unchanged=unchanged,
        dropped=len(previous_paths - paths),
        resumed=resumed,
        broken={image.path: reason for image, reason in table.broken.items()} | listing.unusable,
        other_files=listing.other_files,
        record=record,
        notes=notes,
    )
