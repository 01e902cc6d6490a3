"""The web application under uvicorn: listening address, startup, and exit within a bounded time."""

import asyncio
import ipaddress
import json
import logging
import os
import signal
import socket
import threading
import warnings
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from pathlib import Path
from types import FrameType

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from hgsl.common.errors import InputError
from hgsl.search.checks import check_host_names, check_port
from hgsl.search.index import SearchIndex
from hgsl.search.web.app import create_app

MAX_HEAD = 1 << 18  # bytes of request line and headers that are parsed; ``limits`` allows far fewer
HEAD_SECONDS = 30.0  # until the headers of a request are complete
GRACE_SECONDS = 1  # for requests in progress when the server is told to exit
EXIT_SECONDS = 1.5  # until the process exits, whatever is still running


class JsonProtocol(H11Protocol):
    """HTTP/1.1 that answers invalid, endless or unfinished requests with JSON, like every other error."""

    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._await_head()

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, "this is not a valid HTTP request, or far too long")

    def _await_head(self) -> None:
        """Limits the time until the next request begins: uvicorn waits forever for the rest of its headers."""
        if self._head_timer is not None:
            self._head_timer.cancel()
        self._head_timer = self.loop.call_later(HEAD_SECONDS, self._end_unless_begun, self.cycle)

    def _end_unless_begun(self, previous: RequestResponseCycle | None) -> None:
        is_waiting = self.cycle is previous and (previous is None or previous.response_complete)
        if is_waiting and not self.transport.is_closing():
            self._refuse(408, f"the request did not arrive within {HEAD_SECONDS:.0f} seconds")

    def _refuse(self, status: int, message: str) -> None:
        body = json.dumps({"error": message}).encode()
        head = (
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: application/json\r\nconnection: close\r\n"
            f"content-length: {len(body)}\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
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
