"""Connections to Milvus."""

import logging
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hgsl.common.disk import check_writable
from hgsl.common.errors import InputError, first_line
from hgsl.common.extras import require
from hgsl.common.paths import public_uri

TOKEN_VARIABLE = "HGSL_MILVUS_TOKEN"
SECONDS = 30.0  # until a server must answer
KEEPALIVE_MS = 300_000  # a server closes connections that ping more often, as pymilvus does by itself

_connections: Counter[str] = Counter()  # open ones of this process, which share the server of a local file


def connect(uri: str, *, create: bool = False) -> Any:
    """Connects to a server, or opens a local file.

    Args:
        uri: ``http://HOST:PORT``, or the path of a local file; the token of a server is the environment variable
            ``HGSL_MILVUS_TOKEN``.
        create: Whether a local file is created if it is missing.

    Raises:
        FileNotFoundError: The local file does not exist.
        InputError: The extra is not installed, the server cannot be reached, or the file is open in another process.
        OSError: The local file cannot be written.
    """
    require("milvus", "an index in Milvus")
    if not is_server(uri):
        _check_local(Path(uri), create)
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # errors are raised, not printed
    from pymilvus import MilvusClient

    for name in ("pymilvus", "milvus_lite"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with milvus_errors(uri):
        options = {"grpc.keepalive_time_ms": KEEPALIVE_MS}
        client = MilvusClient(uri, token=os.environ.get(TOKEN_VARIABLE, ""), timeout=SECONDS, grpc_options=options)
    _connections[_key(uri)] += 1
    return client


def disconnect(client: Any, uri: str) -> None:
    """Closes a connection; with its last one, a local file is closed, so that another process can open it."""
    client.close()
    _connections[_key(uri)] -= 1
    if not is_server(uri) and not _connections[_key(uri)]:
        from milvus_lite.server_manager import server_manager_instance

        server_manager_instance.release_server(uri)


@contextmanager
def milvus_errors(uri: str) -> Iterator[None]:
    """Converts errors of Milvus in the context to one line.

    Raises:
        InputError: Milvus refused, or was not reached.
    """
    try:
        yield
    except Exception as error:
        if not type(error).__module__.startswith(("pymilvus", "grpc", "milvus_lite")):
            raise
        way_out = (
            f"is the server running, and is {TOKEN_VARIABLE} right?"
            if is_server(uri)
            else "is it open in another process? A local file serves one at a time"
        )
        raise InputError(f"Milvus at {public_uri(uri)}: {first_line(error)} ({way_out})") from error


def _check_local(path: Path, create: bool) -> None:
    """Checks the path of a local "file", which is a folder of milvus-lite; with ``create``, makes the folder above."""
    if path.is_file():
        raise InputError(f"{path} is not a file of milvus-lite, which writes a folder of this name: name another one")
    if create:
        check_writable(path)
        path.absolute().parent.mkdir(parents=True, exist_ok=True)
    elif not path.exists():
        raise FileNotFoundError(f"no index in {path}: make one with hgsl-search index")


def _key(uri: str) -> str:
    return uri if is_server(uri) else os.path.abspath(uri)


def is_server(uri: str) -> bool:
    """Whether the address is that of a server, not of a local file."""
    return "://" in uri or uri.startswith("unix:")
