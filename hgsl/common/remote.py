"""Remote files, at addresses such as ``s3://bucket/a.jpg``: read and listed through fsspec, with retries."""

import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.util import find_spec
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

from hgsl.common.errors import InputError, unknown
from hgsl.common.paths import public_uri
from hgsl.common.retries import attempt

# Protocol -> the module that fsspec needs for it, and the packages to install.
PROTOCOLS = {
    "file": ("fsspec", "fsspec"),
    "memory": ("fsspec", "fsspec"),
    "http": ("aiohttp", "'hgsl[remote]'"),
    "https": ("aiohttp", "'hgsl[remote]'"),
    "hf": ("huggingface_hub", "huggingface_hub"),
    "s3": ("s3fs", "s3fs"),
    "gs": ("gcsfs", "gcsfs"),
}
QUOTED = ("http", "https")  # protocols whose paths are percent-encoded
LISTED_FROM = 16  # files of one folder
READERS = 16  # threads, which hide the latency
# Fields of fsspec's description of a file that change with its content; the first present one is used.
VALIDATORS = ("md5Hash", "ETag", "etag", "blob_id", "Content-MD5", "Digest", "LastModified", "Last-Modified", "created")


class RemoteFile(NamedTuple):
    """A file of a listing: its path below the listed address, its size, and a number that changes with its content."""

    path: str
    size: int
    version: int


def check_uri(uri: str) -> None:
    """Checks that an address can be read with the installed packages; nothing is fetched.

    Raises:
        InputError: The protocol is unknown or needs a package that is not installed, or the address names no file.
    """
    protocol, _, path = uri.partition("://")
    if protocol not in PROTOCOLS:
        raise unknown("protocol", protocol, PROTOCOLS)
    if not path.strip("/"):
        raise InputError(f"the address {public_uri(uri)} names no file or folder")
    module, package = PROTOCOLS[protocol]
    if find_spec(module) is None:
        raise InputError(f"{protocol}:// needs {module}, to read {public_uri(uri)}: pip install {package}")


def check_root_uri(option: str, uri: str) -> None:
    """Checks an address to which paths are relative, which reports and records contain.

    Raises:
        InputError: It cannot be read, see :func:`check_uri`, or holds a password or a token.
    """
    check_uri(uri)
    if public_uri(uri) != uri:
        raise InputError(
            f"{option}: the address {public_uri(uri)} was given with a password or a token, which records would "
            "contain: set credentials in the environment, such as AWS_ACCESS_KEY_ID or HF_TOKEN"
        )


def join_uri(root: str, path: str) -> str:
    """The address of a relative POSIX path below ``root``.

    >>> join_uri("https://host/images/", "rose 1.jpg"), join_uri("s3://bucket", "rose 1.jpg")
    ('https://host/images/rose%201.jpg', 's3://bucket/rose 1.jpg')
    """
    return f"{root.rstrip('/')}/{quote(path) if root.startswith(QUOTED) else path}"


def read_uri(uri: str) -> bytes:
    """The content of the file at an address.

    Raises:
        FileNotFoundError: There is no such file.
        InputError: It cannot be read, in several attempts where another one may succeed.
    """
    check_uri(uri)
    content: bytes = attempt(uri, lambda: _file_system(uri).cat_file(uri))
    return content


def states_of(uris: Iterable[str]) -> dict[str, str]:
    """Address -> text that changes with the content of the file, for the files that exist.

    A folder of an object store is listed where many of its files are asked for, which takes a request per thousand
    files; HTTP takes a request per file.

    Raises:
        InputError: The server or store cannot be asked.
    """
    by_folder: dict[str, list[str]] = defaultdict(list)
    for uri in uris:
        check_uri(uri)
        by_folder[uri.rpartition("/")[0]].append(uri)
    listed = {
        folder: uris for folder, uris in by_folder.items() if len(uris) >= LISTED_FROM and not folder.startswith(QUOTED)
    }
    single = [uri for folder, uris in by_folder.items() if folder not in listed for uri in uris]
    with ThreadPoolExecutor(READERS) as pool:
        states = dict(zip(single, pool.map(_state, single), strict=True))
        for part in pool.map(_folder_states, listed, listed.values()):
            states |= part
    return {uri: state for uri, state in states.items() if state}


def list_uri(root: str) -> list[RemoteFile]:
    """Every file below an address, sorted by path.

    Raises:
        FileNotFoundError: There is nothing at the address.
        InputError: It cannot be listed.
    """
    check_uri(root)
    system = _file_system(root)
    system.invalidate_cache()
    entries: dict[str, Mapping[str, Any]] = (
        _linked_files(system, root)
        if root.startswith(QUOTED)
        else attempt(root, lambda: system.find(root, detail=True))
    )
    if not entries:
        raise FileNotFoundError(f"there are no files at {public_uri(root)}")
    return sorted(_listed_files(root, system._strip_protocol(root).rstrip("/") + "/", entries))


def _linked_files(system: Any, root: str) -> dict[str, Mapping[str, Any]]:
    """The files that the pages of folders link to, below an HTTP address.

    fsspec would pass over a folder whose page fails, so that its files look deleted, and does not ask for what tells a
    changed file, which takes a request per file.
    """
    files: set[str] = set()
    folders, visited = [root.rstrip("/") + "/"], set[str]()
    while folders:
        folder = folders.pop()
        visited.add(folder)
        try:
            names = attempt(folder, partial(system.ls, folder, detail=False))
        except FileNotFoundError:  # a dead link
            continue
        names = [name for name in names if "?" not in name and "#" not in name and name.startswith(folder)]
        folders += [name for name in names if name.endswith("/") and name not in visited]
        files |= {name for name in names if not name.endswith("/")}
    with ThreadPoolExecutor(READERS) as pool:
        return dict(zip(sorted(files), pool.map(partial(_info, system), sorted(files)), strict=True))


def _info(system: Any, uri: str) -> Mapping[str, Any]:
    """The description of a file; of one that is gone, which a later read reports, an empty one."""
    try:
        info: Mapping[str, Any] = attempt(uri, lambda: system.info(uri))
    except FileNotFoundError:
        return {"type": "file"}
    return info


def _listed_files(root: str, top: str, entries: Mapping[str, Mapping[str, Any]]) -> Iterator[RemoteFile]:
    for name, info in entries.items():
        path = name.removeprefix(top)
        if info.get("type") == "file" and path != name:
            size, version = info.get("size") or 0, zlib.crc32(_validator(info).encode())
            yield RemoteFile(unquote(path) if root.startswith(QUOTED) else path, int(size), version)


def _file_system(uri: str) -> Any:
    """The fsspec file system of an address; fsspec keeps one per process, also after a fork."""
    import fsspec

    return fsspec.filesystem(uri.partition("://")[0])


def _state(uri: str) -> str:
    try:
        return _state_text(attempt(uri, lambda: _file_system(uri).info(uri)))
    except FileNotFoundError:
        return ""


def _folder_states(folder: str, uris: Sequence[str]) -> dict[str, str]:
    system = _file_system(folder)
    system.invalidate_cache()
    try:
        entries = attempt(folder, lambda: system.ls(folder, detail=True))
    except FileNotFoundError:
        return {}
    states = {entry["name"].strip("/"): _state_text(entry) for entry in entries if entry.get("type") == "file"}
    return {uri: states.get(system._strip_protocol(uri).strip("/"), "") for uri in uris}


def _state_text(info: Mapping[str, Any]) -> str:
    return f"{info.get('size')}-{zlib.crc32(_validator(info).encode()):08x}"


def _validator(info: Mapping[str, Any]) -> str:
    return str(next((info[field] for field in VALIDATORS if info.get(field)), ""))
