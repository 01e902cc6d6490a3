"""Listing of an image folder."""

import stat
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from hgsl.common.errors import InputError
from hgsl.common.files import as_text, is_listed, walk_files
from hgsl.common.images import IMAGE_SUFFIXES
from hgsl.common.remote import list_uri
from hgsl.search.checks import check_image_folder
from hgsl.search.stores.protocol import ImageFile


class FolderListing(NamedTuple):
    """The contents of an image folder.

    Attributes:
        images: Sorted by path.
        other_files: Suffix -> number of files that are not images.
        unusable: Path -> why an image file cannot be indexed at all.
    """

    images: list[ImageFile]
    other_files: Counter[str]
    unusable: dict[str, str]


def list_images(root: Path | str) -> FolderListing:
    """Lists every image file below ``root`` by its suffix; hidden files and folders are skipped, links are followed.

    Args:
        root: A folder, or an address such as ``s3://bucket/images``.

    Raises:
        FileNotFoundError: There is no such folder.
        InputError: It holds no image: an unmounted disk must not empty an index.
    """
    check_image_folder(root)
    listing = _list_address(root) if isinstance(root, str) else _list_folder(root)
    if not listing.images:
        raise InputError(_nothing_to_index(root, listing))
    listing.images.sort()
    return listing


def _list_address(root: str) -> FolderListing:
    listing = FolderListing([], Counter(), {})
    for file in list_uri(root):
        path = PurePosixPath(file.path)
        if path.name.startswith(".") or not all(map(is_listed, path.parts[:-1])):
            continue
        if path.suffix.lower() in IMAGE_SUFFIXES:
            listing.images.append(ImageFile(file.path, file.size, file.version))
        else:
            listing.other_files[path.suffix.lower() or "no suffix"] += 1
    return listing


def _list_folder(root: Path) -> FolderListing:
    listing = FolderListing([], Counter(), {})
    for path in walk_files(root):
        name = path.relative_to(root).as_posix()
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            listing.other_files[as_text(path.suffix.lower()) or "no suffix"] += 1
            continue
        try:
            name.encode()
            status = path.stat()
        except UnicodeEncodeError:
            listing.unusable[as_text(name)] = "its name is not UTF-8: rename it"
        except OSError as error:
            listing.unusable[name] = error.strerror or "cannot be read"
        else:
            if stat.S_ISREG(status.st_mode):
                listing.images.append(ImageFile(name, status.st_size, status.st_mtime_ns))
            else:  # such as a pipe, on which reading would block
                listing.unusable[name] = "is not a regular file"
    return listing


def _nothing_to_index(root: Path | str, listing: FolderListing) -> str:
    files = ", ".join(f"{count} {suffix}" for suffix, count in listing.other_files.most_common(5))
    unusable = next((f"{name}: {reason}" for name, reason in listing.unusable.items()), None)
    detail = f" (only {files})" if files else f" ({unusable})" if unusable else ""
    return f"{root} holds no images{detail}: is it the right folder?"
