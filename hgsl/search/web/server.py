"""The web application under uvicorn: listening address, startup, and exit within a bounded time."""

import ipaddress
import logging
import os
import signal
import socket
import threading
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import FrameType

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from hgsl.common.errors import InputError
from hgsl.search.checks import check_host_names, check_port
from hgsl.search.index import SearchIndex
from hgsl.search.web.app import create_app

MAX_HEAD = 1 << 18  # bytes of request line and headers that are parsed; ``limits`` allows far fewer
GRACE_SECONDS = 1  # for requests in progress when the server is told to exit
EXIT_SECONDS = 1.5  # until the process exits, whatever is still running


class JsonProtocol(H11Protocol):
    """HTTP/1.1 that answers invalid or endless requests with JSON, like every other error."""

    def send_400_response(self, msg: str) -> None:
        body = b'{"error": "this is not a valid HTTP request, or far too long"}'
        head = (
            b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\nconnection: close\r\n"
            b"content-length: %d\r\n\r\n" % len(body)
        )
        self.transport.write(head + body)
        self.transport.close()


class ExitingServer(uvicorn.Server):
    """A server whose process exits at most ``EXIT_SECONDS`` after a signal, even while an image is decoded."""

    received: int | None = None  # the signal that ended it

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.received = sig
        super().handle_exit(sig, frame)
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # no error log for aborted requests
        timer = threading.Timer(EXIT_SECONDS, os._exit, [128 + sig])  # a server writes nothing that could be lost
        timer.daemon = True
        timer.start()


def serve(
    indexes: str | Path | Mapping[str, str | Path],
    host: str = "127.0.0.1",
    port: int = 8000,
    *,
    allowed_hosts: Iterable[str] = (),
    device: str = "auto",
    model: str | Path | None = None,
) -> None:
    """Opens indexes, prints the address of their page, and serves it until the process is interrupted.

    Args:
        indexes: The address of an index, or name -> address of several.
        host: Address to listen on; the default is reachable from this machine only.
        port: Port to listen on; 0 chooses a free one.
        allowed_hosts: Host names by which the server may be reached, besides localhost and IP addresses.
        device: Device of the model.
        model: The model of the indexes, if it is elsewhere than they name.

    Raises:
        FileNotFoundError: There is no index.
        InputError: It is damaged, or the address cannot be listened on.
        KeyboardInterrupt: The process was interrupted.
    """
    allowed_hosts = list(allowed_hosts)
    check_host_names(allowed_hosts)
    listener = listen(host, port)
    addresses = indexes if isinstance(indexes, Mapping) else {"": indexes}
    opened = {name: SearchIndex.open(address, device=device, model=model) for name, address in addresses.items()}
    for index in opened.values():
        index.encoder  # noqa: B018 (loads the model now: a damaged one is reported, and the first search is fast)
    warnings.filterwarnings("ignore", module="PIL")  # about unusual files: the client gets an error response
    url_host = f"[{host}]" if ":" in host else host
    images = sum(len(index) for index in opened.values())
    print(f"{images:,} images: http://{url_host}:{listener.getsockname()[1]} (Ctrl-C ends it)", flush=True)
    if not _is_loopback(host):
        print("note: everyone who can reach this address can see these images", flush=True)
    server = make_server(opened, [host, *allowed_hosts])
    server.run(sockets=[listener])
    if server.received == signal.SIGINT:  # uvicorn raises it again, but asyncio drops it if the server ends meanwhile
        raise KeyboardInterrupt


def make_server(indexes: SearchIndex | Mapping[str, SearchIndex], names: Iterable[str] = ()) -> ExitingServer:
    """Creates the server over opened indexes; ``names`` are its allowed host names, as in ``create_app``."""
    config = uvicorn.Config(
        create_app(indexes, names),
        http=JsonProtocol,
        ws="none",
        log_level="warning",
        h11_max_incomplete_event_size=MAX_HEAD,
        server_header=False,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
    return ExitingServer(config)


def listen(host: str, port: int) -> socket.socket:
    """Opens a listening socket.

    Raises:
        InputError: The port is out of range, or the address is in use or not of this machine.
    """
    check_port(port)
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.create_server(address[:2], family=family)
    except (OSError, UnicodeError) as error:  # UnicodeError: a name that is too long for a host
        raise InputError(f"cannot listen on {host} port {port}: {error}; --host and --port name another") from None
    # Accepted connections inherit it; without it the end of a response waits 40 ms for the client's acknowledgment.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
