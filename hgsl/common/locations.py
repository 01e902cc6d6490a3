"""Locations of images: a path, an address, or content stored in another file; every image is opened here."""

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote

from hgsl.common.paths import is_uri, public_uri
from hgsl.common.remote import join_uri, read_uri, states_of


class StoredImage(Protocol):
    """An image within another file, such as a row of a Parquet file; as text, its name in messages."""

    def read(self) -> bytes:
        """The encoded image."""


Location = Path | str | StoredImage  # the str is a URI


def locate(root: Path | str, path: str) -> Path | str:
    """The location of a path of a manifest or an index: of a URI, or of a path relative to a folder or to a URI.

    >>> locate("s3://bucket/images", "rose/1.jpg"), locate("s3://bucket/images", "gs://other/2.jpg")
    ('s3://bucket/images/rose/1.jpg', 'gs://other/2.jpg')
    """
    if is_uri(path):
        return local_or_uri(path)
    return local_or_uri(join_uri(root, path)) if isinstance(root, str) else root / path


def local_or_uri(text: str) -> Path | str:
    """A path, also of ``file://``, or else the URI.

    >>> local_or_uri("file:///photos/rose%201.jpg")
    PosixPath('/photos/rose 1.jpg')
    """
    if text.startswith("file://"):
        return Path(unquote(text.removeprefix("file://").removeprefix("localhost")))
    return text if is_uri(text) else Path(text).expanduser()


def name_of(location: Location) -> str:
    """The name of a location in messages; of an address, without passwords and tokens."""
    return public_uri(location) if isinstance(location, str) else str(location)


def open_image(location: Location) -> Path | io.BytesIO:
    """An image file for Pillow, which reads a path itself; other content is read in full.

    Raises:
        FileNotFoundError: There is no such file at the address.
        InputError: It cannot be fetched; the message names the address.
    """
    return location if isinstance(location, Path) else io.BytesIO(read_bytes(location))


def read_bytes(location: Location) -> bytes:
    """The content of an image file.

    Raises:
        OSError: A local file cannot be read.
        FileNotFoundError: There is no such file.
        InputError: It cannot be fetched, or is not in the file that stores it.
    """
    if isinstance(location, Path):
        return location.read_bytes()
    return read_uri(location) if isinstance(location, str) else location.read()


def remote_states(locations: Iterable[Location]) -> dict[str, str]:
    """Address -> text that changes with the content of the file, for those locations that are existing addresses.

    Raises:
        InputError: A server or store cannot be asked.
    """
    return states_of(location for location in locations if isinstance(location, str))
