"""Paths as arguments, and relative to a root folder, as in tables, manifests, indexes and archives."""

import os
from pathlib import Path, PurePosixPath

from hgsl.common.errors import InputError


def check_path(name: str, value: object, expected: str = "a path") -> None:
    """Checks that the argument ``name`` is a string or a path.

    Raises:
        InputError: It is of another type; the message names the argument.
    """
    if not isinstance(value, str | os.PathLike):
        raise InputError(f"{name} is {value!r:.80}: expected {expected}")


def is_inside(path: str) -> bool:
    """Whether a POSIX path is relative and stays inside its root: the check of paths from untrusted sources.

    >>> [is_inside(path) for path in ("a/b.jpg", "/etc/passwd", "a/../../b.jpg", "")]
    [True, False, False, False]
    """
    posix_path = PurePosixPath(path)
    return bool(path) and "\0" not in path and not posix_path.is_absolute() and ".." not in posix_path.parts


def relative_to_root(path: str, root: Path) -> str:
    """Returns a path with forward slashes, relative to ``root`` where it is an absolute one inside it.

    A backslash separates folders, as on Windows, unless ``root`` has a file of exactly that name. A path outside
    ``root`` is not made relative, so that :func:`is_inside` can refuse it.
    """
    path = path.rstrip()
    if "\\" in path and not (root / path).is_file():
        path = path.replace("\\", "/")
    root = root.absolute()
    return Path(path).relative_to(root).as_posix() if Path(path).is_relative_to(root) else path
