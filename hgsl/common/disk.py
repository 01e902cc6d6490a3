"""Disk errors that name the path, and a check before long work that a path is writable."""

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hgsl.common.errors import InputError

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


@contextmanager
def named_disk_errors(path: str | os.PathLike[str], temporary: Path | None = None) -> Iterator[None]:
    """Converts disk errors (full, read-only, I/O) inside the context to an ``OSError`` that names ``path``.

    Python's ``OSError`` for a full disk names no file; NumPy, safetensors and FAISS raise other exceptions, with the
    text of the system error in the message.

    Args:
        path: The file that is written.
        temporary: The temporary file that is written first, which the error must not name.
    """
    try:
        yield
    except Exception as error:
        code = _disk_error(error, temporary)
        if code is None:
            raise
        raise OSError(code, os.strerror(code), os.fspath(path)) from error


def check_writable(path: str | os.PathLike[str], size: int = 0) -> None:
    """Checks that ``path``, or a file in it if it is a folder, can be written; parent folders may be missing.

    Commands call it for each output before long work, so that a wrong path, a missing permission, a read-only or a full
    disk is reported at once. It leaves no file.

    Args:
        path: A file, which need not exist, or an existing folder.
        size: Bytes that will be needed, if known.

    Raises:
        InputError: It is a device or a pipe.
        OSError: It cannot be written, or fewer than ``size`` bytes are free; the error names ``path``.
    """
    check_no_device(path)
    folder = Path(path)
    if not folder.is_dir():
        folder = folder.parent
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"\0" * 4096)
            file.flush()
    except OSError as error:
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error
    free = shutil.disk_usage(folder).free
    if free < size:
        reason = f"{os.strerror(errno.ENOSPC)} ({free:,} bytes are free, {size:,} are needed)"
        raise OSError(errno.ENOSPC, reason, os.fspath(path))


def check_no_device(path: str | os.PathLike[str]) -> None:
    """Checks that ``path`` is no device or pipe such as /dev/null, which a rename to this name would remove.

    Raises:
        InputError: It is one.
    """
    if os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path)):
        raise InputError(f"{os.fspath(path)} is a device or a pipe, and would be replaced: name a file")


def reserve_space(path: str | os.PathLike[str]) -> None:
    """Allocates the blocks of a sparse file before it is memory-mapped: on a full disk, SIGBUS would end the process.

    Raises:
        OSError: The disk is full; the error names ``path``.
    """
    with named_disk_errors(path), open(path, "r+b") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, os.fstat(file.fileno()).st_size))


def _disk_error(error: Exception, temporary: Path | None) -> int | None:
    """Returns the errno of a disk error that names no file, or ``temporary``; None for any other error."""
    if isinstance(error, OSError) and error.errno is not None:
        filename = error.filename if error.filename is None else os.fsdecode(error.filename)
        if temporary is not None and filename == os.fspath(temporary):
            return error.errno
        return error.errno if filename is None and error.errno in DISK_ERRORS else None
    if isinstance(error, OSError) and re.fullmatch(r"\d+ requested and \d+ written", str(error)):  # numpy.save
        return errno.ENOSPC
    return next((code for code in DISK_ERRORS if os.strerror(code) in str(error)), None)
