"""Paths inside a root folder, as tables, manifests, indexes and archives name them."""

from pathlib import Path, PurePosixPath


def is_inside(path: str) -> bool:
    """Whether a POSIX path is relative and does not climb out of its root: the way to check what strangers wrote.

    >>> [is_inside(path) for path in ("a/b.jpg", "/etc/passwd", "a/../../b.jpg", "")]
    [True, False, False, False]
    """
    parts = PurePosixPath(path)
    return bool(path) and "\0" not in path and not parts.is_absolute() and ".." not in parts.parts


def relative_to_root(path: str, root: Path) -> str:
    """Returns a path with forward slashes, relative to ``root`` where it is an absolute one inside it.

    A backslash separates folders, as Windows writes it, unless ``root`` has a file of that very name. Any path that is
    not inside ``root`` is returned unchanged, so that :func:`is_inside` can refuse it.
    """
    path = path.rstrip()
    if "\\" in path and not (root / path).is_file():
        path = path.replace("\\", "/")
    root = root.absolute()
    return Path(path).relative_to(root).as_posix() if Path(path).is_relative_to(root) else path
