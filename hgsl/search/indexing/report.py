"""Summary of one call of ``build_index``."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hgsl.search.indexing.image_folder import FolderListing
from hgsl.search.stores.protocol import ImageFile, ImageRow, State


@dataclass(frozen=True)
class IndexReport:
    """Summary of one call of :func:`build_index`.

    Attributes:
        images: Images in the index.
        new, changed, unchanged, dropped: Image files compared with the previous state, broken ones included.
        resumed: Images whose vectors were left by an interrupted run.
        broken: Path -> why an image could not be read; it is not in the index, and the next call tries it again.
        other_files: Suffix -> number of files that are not images.
        record: The settings of the index.
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
    previous: State,
    listing: FolderListing,
    staged: Mapping[int, ImageRow],
    broken: Mapping[ImageFile, str],
    record: Mapping[str, Any],
    notes: list[str],
) -> IndexReport:
    """Compares the listed images with those of the previous state and of an interrupted run."""
    previous_files = {row.file for row in previous.rows.values()} | previous.broken.keys()
    staged_files = {row.file for row in staged.values()}
    previous_paths, paths = {image.path for image in previous_files}, {image.path for image in listing.images}
    unchanged = sum(image in previous_files for image in listing.images)
    new = len(paths - previous_paths)
    dropped = len(previous_paths - paths)
    old_root, root = previous.record.get("root", record["root"]), record["root"]
    if old_root != root and dropped:
        notes.append(
            f"the index held the images of {old_root}: {dropped:,} of them are not in {root} and were dropped; to "
            "index several folders, give one that holds links to them"
        )
    if readable := sum(image in previous.broken and image not in broken for image in listing.images):
        notes.append(f"{readable:,} images that could not be read before are in the index now")
    return IndexReport(
        images=len(listing.images) - len(broken),
        new=new,
        changed=len(listing.images) - unchanged - new,
        unchanged=unchanged,
        dropped=dropped,
        resumed=sum(image in staged_files for image in listing.images),
        broken={image.path: reason for image, reason in broken.items()} | listing.unusable,
        other_files=listing.other_files,
        record=record,
        notes=notes,
    )
