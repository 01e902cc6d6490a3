"""Atomic writes (temporary name, flush to disk, rename), lock files, JSON, and recursive listings of folders."""

import fcntl
import json
import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hgsl.common.disk import check_no_device, named_disk_errors
from hgsl.common.errors import InputError

PARTIAL = ".partial"  # in the name of a file that is being written
LIBRARY_PARTIAL = re.compile(r"\.tmp[0-9A-Za-z]{6}")  # the name under which safetensors itself writes a file first
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
# Folders of file systems, archives and network storage, some with thumbnails of the images beside them.
SYSTEM_FOLDERS = frozenset(
    ("lost+found", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "__MACOSX")
)


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary path in the folder of ``path``; on success it is renamed to ``path``, on error removed.

    The folder is created if it is missing. The file is flushed to disk before the rename and the folder after it, so a
    crash at any moment leaves either the old file or the new one. The mode of the file follows the umask, also where a
    library sets another (safetensors: readable by the owner only).

    Raises:
        InputError: ``path`` is a device or a pipe.
        OSError: The folder cannot be written, or the disk is full; the error names ``path``. Nothing is left behind.
    """
    target = Path(path)
    check_no_device(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    # The suffix is kept: several writers (PNG, safetensors) choose their format by it.
    temporary = target.with_name(f".{target.stem}.{secrets.token_hex(4)}{PARTIAL}{target.suffix}")
    try:
        with named_disk_errors(target, temporary):
            temporary.touch(exist_ok=False)
            mode = stat.S_IMODE(temporary.stat().st_mode)
            yield temporary
            temporary.chmod(mode)
            _flush(temporary, os.O_RDWR)
            os.replace(temporary, target)
            _flush(target.parent, os.O_RDONLY)
    finally:
        with suppress(OSError):  # already renamed, or the disk is read-only, which is being raised
            temporary.unlink()


def remove_partial(folder: Path) -> None:
    """Removes the temporary files that killed processes left in ``folder``; no process may be writing there now."""
    for path in folder.glob(".*"):
        if is_partial(path.name):
            path.unlink(missing_ok=True)


def is_partial(name: str) -> bool:
    """Whether a file of this name is temporary.

    >>> is_partial(".state.0123abcd.partial.safetensors"), is_partial(".tmpa0B1c2"), is_partial("state.safetensors")
    (True, True, False)
    """
    return name.startswith(".") and (PARTIAL in name or LIBRARY_PARTIAL.fullmatch(name) is not None)


@contextmanager
def locked(path: str | os.PathLike[str], refusal: str) -> Iterator[None]:
    """Holds the lock file ``path``; the lock is released on exit, and however the process ends.

    Args:
        path: Created if it is missing, and its folder too.
        refusal: The message of the error if another process holds it.

    Raises:
        InputError: Another process holds it.
    """
    lock = Path(path)
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(refusal) from None
        yield


@contextmanager
def locked_in_turn(path: str | os.PathLike[str]) -> Iterator[None]:
    """Holds the lock file ``path`` as :func:`locked` does, after a process that holds it has released it."""
    lock = Path(path)
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes ``text`` as UTF-8, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_json(path: str | os.PathLike[str], what: str = "a JSON file") -> dict[str, Any]:
    """Reads a JSON object from a file that may be untrusted.

    Args:
        path: The file.
        what: What the file should hold, for the error message.

    Raises:
        OSError: It cannot be read.
        InputError: It is not JSON, is nested too deeply, or is not an object.
    """
    try:
        content = json.loads(Path(path).read_bytes())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON ({error}): expected {what}, it may be damaged") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a JSON {type(content).__name__}: expected {what}")
    return content


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Writes ``value`` as indented JSON, atomically; NaN and infinities are refused since JSON has none."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def walk_files(top: Path, *above: Path) -> Iterator[Path]:
    """Yields every file below ``top``, sorted, except hidden files and folders, and ``SYSTEM_FOLDERS``.

    Links are followed, but not to a folder that was visited before, nor to one of ``above``, so that a link to a parent
    folder is no infinite loop.

    Raises:
        InputError: A folder cannot be read; skipping it would make its files look deleted.
    """
    visited = {_inode(folder) for folder in above}
    for folder, folders, files in os.walk(top, onerror=_refuse, followlinks=True):
        inode = _inode(folder)
        if inode in visited:
            folders.clear()
            continue
        visited.add(inode)
        folders[:] = sorted(filter(is_listed, folders))
        yield from (Path(folder, name) for name in sorted(files) if not name.startswith("."))


def is_listed(folder: str) -> bool:
    """Whether a folder of this name is looked into: it is neither hidden nor one of ``SYSTEM_FOLDERS``."""
    return not folder.startswith(".") and folder not in SYSTEM_FOLDERS


def as_text(path: str | os.PathLike[str]) -> str:
    """Returns a path, or a text with paths, as one line for a terminal.

    Bytes that are not UTF-8 are written as ``\\xff``, and control characters as in Python: a line feed in a name would
    begin another line, and an escape sequence could clear the terminal.

    >>> print(as_text("a\\nb\\x1b[2J.jpg"))
    a\\nb\\x1b[2J.jpg
    """
    text = os.fsencode(path).decode(errors="backslashreplace")
    return CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


def _refuse(error: OSError) -> None:
    folder = as_text(error.filename)
    raise InputError(f"the folder {folder} cannot be read ({error.strerror}): make it readable, or move it elsewhere")


def _inode(folder: str | os.PathLike[str]) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _flush(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
