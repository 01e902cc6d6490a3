"""Safe unpacking of downloaded archives: no paths outside the root, no links, no devices, a bounded size."""

import shutil
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from hgsl.common.errors import InputError
from hgsl.common.paths import is_inside

CHUNK = 1 << 20
MAX_FILES = 1_000_000
DAMAGED = (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, NotImplementedError)


@dataclass(frozen=True)
class _Entry:
    name: str
    entry_type: str  # "file", "folder" or "a link or a device"
    content: IO[bytes] | None


def unpack(archive: Path, root: Path, max_bytes: int | None = None) -> list[Path]:
    """Unpacks a zip or tar archive into ``root``, completely or not at all.

    Args:
        archive: The file; compression of tar is recognized.
        root: An existing folder.
        max_bytes: Maximum total size of its files; None for ten times the size of the archive plus 64 MiB, since
            images hardly compress.

    Returns:
        The new entries of ``root``.

    Raises:
        InputError: The archive is damaged, names a path outside the root, holds a link or a device, exceeds a
            limit, or would replace an existing file. Nothing is left behind.
    """
    limit = 10 * archive.stat().st_size + (64 << 20) if max_bytes is None else max_bytes
    staging = Path(tempfile.mkdtemp(prefix=".unpack-", dir=root))
    try:
        try:
            _extract(archive, staging, limit)
        except InputError:
            raise
        except DAMAGED as error:
            raise InputError(
                f"{archive} cannot be unpacked: {' '.join(str(error).split()) or type(error).__name__}"
            ) from None
        tops = sorted(staging.iterdir())
        existing = next((root / top.name for top in tops if (root / top.name).exists()), None)
        if existing is not None:
            raise InputError(f"{archive} would replace {existing}: move that away first")
        return [top.rename(root / top.name) for top in tops]
    finally:
        shutil.rmtree(staging)


def _extract(archive: Path, staging: Path, limit: int) -> None:
    written = 0
    for count, entry in enumerate(_entries(archive), 1):
        if not is_inside(entry.name) or "\\" in entry.name:
            raise InputError(f"{archive} names the path {entry.name!r}, which leads outside: it is refused as a whole")
        if entry.entry_type not in ("file", "folder"):
            raise InputError(f"{archive} holds {entry.name!r}, {entry.entry_type}: it is refused as a whole")
        if count > MAX_FILES:
            raise InputError(f"{archive} holds more than {MAX_FILES:,} files: it is refused as a whole")
        target = staging / entry.name
        if entry.content is None:
            target.mkdir(parents=True, exist_ok=True)
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        with entry.content as source, target.open("xb") as file:
            while chunk := source.read(CHUNK):
                written += len(chunk)
                if written > limit:
                    raise InputError(f"{archive} holds more than {limit:,} bytes: it is refused as a whole")
                file.write(chunk)


def _entries(archive: Path) -> Iterator[_Entry]:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as file:
            for item in file.infolist():
                mode = item.external_attr >> 16
                if item.is_dir():
                    yield _Entry(item.filename, "folder", None)
                elif stat.S_IFMT(mode) not in (0, stat.S_IFREG):
                    yield _Entry(item.filename, "a link or a device", None)
                else:
                    yield _Entry(item.filename, "file", file.open(item))
        return
    with tarfile.open(archive, "r|*") as file:
        for member in file:
            entry_type = "file" if member.isreg() else "folder" if member.isdir() else "a link or a device"
            yield _Entry(member.name, entry_type, file.extractfile(member) if entry_type == "file" else None)
