"""Paths as arguments, and relative to a root folder, as in tables, manifests, indexes and archives."""

import os
import re
from pathlib import Path
from urllib.parse import unquote

from hgsl.common.errors import InputError

URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
# Words in the names of the HTTP parameters that grant access, such as X-Amz-Signature of a presigned address.
SECRET = re.compile(
    r"(.*(access|account|api|app|auth|client|master|private|secret|service|session|shared|sign|signing|storage))?key"
    r"|sig|sign|signed|.*(signature|token|secret|password|passwd|pwd|credential)s?"
    r"|pass(code|phrase)?|o?auth(entication|orization)?|creds?|expires|policy|hmac|jwt"
)


def check_path(name: str, value: object, expected: str = "a path") -> None:
    """Checks that the argument ``name`` is a string or a path.

    Raises:
        InputError: It is of another type; the message names the argument.
    """
    if not isinstance(value, str | os.PathLike):
        raise InputError(f"{name} is {value!r:.80}: expected {expected}")


def is_uri(path: object) -> bool:
    """Whether a path is an address such as ``s3://bucket/a.jpg``.

    >>> is_uri("s3://bucket/a.jpg"), is_uri("photos/a.jpg")
    (True, False)
    """
    return isinstance(path, str) and URI.match(path) is not None


def public_uri(uri: str) -> str:
    """Returns an address without what grants access: user, password, such parameters of HTTP; other text as it is.

    >>> public_uri("https://me:word@host/a.jpg?size=9&X-Amz-Signature=f00")
    'https://host/a.jpg?size=9'
    """
    protocol, has_protocol, rest = uri.partition("://")
    if not has_protocol:
        return uri
    end = re.search(r"[/?#]|$", rest)
    assert end is not None  # the pattern matches everywhere
    host, path = rest[: end.start()].rpartition("@")[2], rest[end.start() :]
    if protocol.lower() in ("http", "https"):
        path, hash_mark, fragment = path.partition("#")
        path, question_mark, query = path.partition("?")
        for mark, text in ((question_mark, query), (hash_mark, fragment)):
            public = "&".join(part for part in text.split("&") if not _is_secret(part))
            path += f"{mark}{public}" if public or not text else ""
    return f"{protocol}://{host}{path}"


def _is_secret(parameter: str) -> bool:
    """Whether NAME=VALUE grants access, by the words of its name: "access-key" and "apiKey", but not "monkey"."""
    name, has_value, _ = parameter.partition("=")
    name = unquote(name) if has_value else ""
    words = [*re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name), *re.findall(r"[A-Za-z]+", name)]
    return bool(re.match(r"x-(amz|goog)-", name, re.IGNORECASE)) or any(SECRET.fullmatch(w.lower()) for w in words)


def check_local(name: str, path: str | os.PathLike[str], way_out: str) -> None:
    """Checks that a path is not an address.

    Args:
        name: The argument, for the message.
        path: As given, or as a ``Path``, in which one of the two slashes of an address is lost.
        way_out: What to give instead.

    Raises:
        InputError: It is an address; the message has it without what grants access.
    """
    match = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):/+", os.fspath(path))
    if match and not os.path.lexists(path):
        address = f"{match[1]}://{os.fspath(path)[match.end() :]}"
        raise InputError(f"{name}: {public_uri(address)} is an address, expected a local path: {way_out}")


def is_inside(path: str) -> bool:
    """Whether a POSIX path is relative and stays inside its root: the check of paths from untrusted sources.

    >>> [is_inside(path) for path in ("a/b.jpg", "/etc/passwd", "a/../../b.jpg", "")]
    [True, False, False, False]
    """
    return bool(path) and "\0" not in path and not path.startswith("/") and ".." not in path.split("/")


def relative_to_root(path: str, root: Path | str) -> str:
    """Returns a path with forward slashes, relative to ``root`` where it is an absolute one inside it.

    A backslash separates folders, as on Windows, unless ``root`` has a file of exactly that name. A path outside
    ``root`` is not made relative, so that :func:`is_inside` can refuse it. A URI stays as it is.
    """
    path = path.rstrip()
    if is_uri(path):
        return path
    if isinstance(root, str):
        return path.replace("\\", "/")
    if "\\" in path and not (root / path).is_file():
        path = path.replace("\\", "/")
    root = root.absolute()
    return Path(path).relative_to(root).as_posix() if Path(path).is_relative_to(root) else path
