"""Runs the application under uvicorn."""

import ipaddress
import socket
import warnings
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from hgsl.common.errors import InputError
from hgsl.search.index import SearchIndex
from hgsl.search.web.app import create_app

MAX_HEAD = 1 << 18  # bytes of request line and headers that are read at all; ``limits`` refuses far shorter ones


class JsonProtocol(H11Protocol):
    """HTTP/1.1 that answers what is no HTTP, or endless, in JSON like everything else."""

    def send_400_response(self, msg: str) -> None:
        body = b'{"error": "this is no valid HTTP request, or a far too long one"}'
        head = (
            b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\nconnection: close\r\n"
            b"content-length: %d\r\n\r\n" % len(body)
        )
        self.transport.write(head + body)
        self.transport.close()


def serve(
    folder: str | Path,
    host: str = "127.0.0.1",
    port: int = 8000,
    *,
    allowed_hosts: Iterable[str] = (),
    device: str = "auto",
) -> None:
    """Opens an index and serves its page until it is interrupted; the address is printed.

    Args:
        folder: Of the index.
        host: Address to listen on; the default is reachable from this machine only.
        port: 0 takes a free one.
        allowed_hosts: Domain names by which the server may be reached, besides localhost and addresses.
        device: Where the model computes.

    Raises:
        FileNotFoundError: There is no index.
        InputError: It is damaged, or the address cannot be listened on.
    """
    index = SearchIndex.open(folder, device=device)
    index.encoder  # noqa: B018 (loads the model now: a damaged one is reported here, and the first search is fast)
    warnings.filterwarnings("ignore", module="PIL")  # about odd files: whoever sends one gets an answer
    listener = _listen(host, port)
    shown = f"[{host}]" if ":" in host else host
    print(f"{len(index):,} photos: http://{shown}:{listener.getsockname()[1]} (Ctrl-C ends it)", flush=True)
    if not _is_loopback(host):
        print("note: whoever can reach this address can see these photos", flush=True)
    with suppress(KeyboardInterrupt):
        make_server(index, [host, *allowed_hosts]).run(sockets=[listener])


def make_server(index: SearchIndex, names: Iterable[str] = ()) -> uvicorn.Server:
    """The server over an opened index; ``names`` are the host names it may be reached by, as for ``create_app``."""
    config = uvicorn.Config(
        create_app(index, names),
        http=JsonProtocol,
        ws="none",
        log_level="warning",
        h11_max_incomplete_event_size=MAX_HEAD,
        server_header=False,
    )
    return uvicorn.Server(config)


def _listen(host: str, port: int) -> socket.socket:
    if not 0 <= port < 1 << 16:  # the system would take the lower 16 bits of it
        raise InputError(f"--port is a number from 0 to 65535, found {port}")
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.create_server(address[:2], family=family)
    except OSError as error:
        raise InputError(f"cannot listen on {host} port {port}: {error}; --host and --port name another") from None
    # Accepted connections inherit it; without it the end of an answer waits 40 ms for the client's acknowledgement.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
