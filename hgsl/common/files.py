"""Files that are either whole or absent: written beside their place, flushed to disk, then renamed."""

import fcntl
import json
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hgsl.common.errors import InputError

PARTIAL = ".partial"  # in the name of a file that is being written


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary path in the folder of ``path``; on success it is renamed to ``path``, on error removed.

    The folder is made if it is missing. The file is flushed to disk before the rename and the folder after it, so a
    crash at any moment leaves either the old file or the new one. Its mode is that of a new file under the process's
    umask, whatever the writer gave it.

    Raises:
        OSError: The folder cannot be written, or the disk is full; it names ``path``. Nothing is left behind.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    # The suffix is kept: several writers (PNG, safetensors) choose their format by it.
    temporary = target.with_name(f".{target.stem}.{secrets.token_hex(4)}{PARTIAL}{target.suffix}")
    try:
        with temporary.open("x") as file:
            mode = os.fstat(file.fileno()).st_mode
        yield temporary
        temporary.chmod(stat.S_IMODE(mode))  # safetensors makes its files private
        _flush(temporary, os.O_RDWR)
        os.replace(temporary, target)
        _flush(target.parent, os.O_RDONLY)
    except OSError as error:
        if error.errno is None or error.filename not in (None, temporary, str(temporary)):
            raise
        raise OSError(error.errno, error.strerror, str(target)) from error
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


def remove_partial(folder: Path) -> None:
    """Removes what was half written in ``folder`` when its process was killed; nobody may be writing there now."""
    for path in folder.glob(f".*{PARTIAL}*"):
        path.unlink(missing_ok=True)


@contextmanager
def locked(path: str | os.PathLike[str], refusal: str) -> Iterator[None]:
    """Holds the lock file ``path`` for this process; the system frees it when the process ends, however it ends.

    Args:
        path: Made if it is missing, and its folder too.
        refusal: What to say if another process holds it.

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


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes ``text`` as UTF-8, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_json(path: str | os.PathLike[str], what: str = "a JSON file") -> dict[str, Any]:
    """Reads a JSON object that may come from anywhere.

    Args:
        path: The file.
        what: What it should be, for the message.

    Raises:
        OSError: It cannot be read.
        InputError: It is no JSON, is nested too deeply, or is no object.
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
    """Yields every file below ``top``, sorted; hidden files and folders are left out.

    Links are followed, but not to a folder that has been walked, nor to one of ``above``: a link back up would have no
    end. ``lost+found``, which a file system keeps to itself, is left out too.

    Raises:
        InputError: A folder cannot be read: what it holds must not seem to be gone.
    """
    seen = {_place(folder) for folder in above}
    for folder, folders, files in os.walk(top, onerror=_refuse, followlinks=True):
        place = _place(folder)
        if place in seen:
            folders.clear()
            continue
        seen.add(place)
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "lost+found")
        yield from (Path(folder, name) for name in sorted(files) if not name.startswith("."))


def as_text(path: str | os.PathLike[str]) -> str:
    """A path as it can be written and printed: bytes of it that are no UTF-8 as ``\\xff``."""
    return os.fsencode(path).decode(errors="backslashreplace")


def _refuse(error: OSError) -> None:
    folder = as_text(error.filename)
    raise InputError(f"the folder {folder} cannot be read ({error.strerror}): make it readable, or move it elsewhere")


def _place(folder: str | os.PathLike[str]) -> tuple[int, int]:
    facts = os.stat(folder)
    return facts.st_dev, facts.st_ino


def _flush(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
