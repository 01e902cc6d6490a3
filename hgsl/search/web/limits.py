"""ASGI middleware: limits on every request, and the security headers of every response."""

import ipaddress
from collections.abc import Iterable

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_TARGET = 1 << 15  # bytes of path and query: the longest condition, each character as nine bytes, and some labels
MAX_HEADERS = 16384  # bytes of all headers together

# The page consists of its own files: nothing can be loaded from, or sent to, another site.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = [
    (b"content-security-policy", POLICY.encode()),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
]


class RequestLimits:
    """Refuses over-long requests and foreign host names, and adds the security headers.

    A page of another site can make a browser send requests to this server under a domain name that resolves to it, and
    could then read the images ("DNS rebinding"). Such a request has that host name, so only ``localhost``, IP addresses
    and ``names`` pass.

    Args:
        app: The application.
        names: Further host names by which the server may be reached.
    """

    def __init__(self, app: ASGIApp, names: Iterable[str] = ()) -> None:
        self.app = app
        self.names = {"localhost", *(name.lower() for name in names)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *HEADERS]
            await send(message)

        error = self._error(scope)
        respond = self.app if error is None else JSONResponse({"error": error[1]}, error[0])
        await respond(scope, receive, send_with_headers)

    def _error(self, scope: Scope) -> tuple[int, str] | None:
        if len(scope.get("raw_path") or b"") + len(scope["query_string"]) > MAX_TARGET:
            return 414, f"the address is longer than {MAX_TARGET} bytes"
        if sum(len(name) + len(value) for name, value in scope["headers"]) > MAX_HEADERS:
            return 431, f"the headers are longer than {MAX_HEADERS} bytes"
        hosts = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
        if len(hosts) != 1 or not self._is_allowed(hosts[0]):
            return 400, "this host name is not allowed: start the server with --allow-host NAME to allow it"
        return None

    def _is_allowed(self, host: str) -> bool:
        name = host.rpartition("]")[0].removeprefix("[") if host.startswith("[") else host.partition(":")[0]
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name.lower() in self.names
        return True
