"""What every request must keep to before any route sees it, and what every answer says to the browser."""

import ipaddress
from collections.abc import Iterable

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_TARGET = 4096  # bytes of path and query
MAX_HEADERS = 16384  # bytes of all headers together

# The page is made of its own files alone: nothing can be loaded from, or sent to, anywhere else.
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


class Limits:
    """ASGI middleware: refuses over-long requests and foreign host names, and adds the security headers.

    A page elsewhere can make a browser ask this server under a domain name that it points here, and would then read the
    photos ("DNS rebinding"). Such a request carries that name, so only ``localhost``, addresses and ``names`` pass.

    Args:
        app: What answers.
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

        refused = self._refusal(scope)
        answer = self.app if refused is None else JSONResponse({"error": refused[1]}, refused[0])
        await answer(scope, receive, send_with_headers)

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        if len(scope.get("raw_path") or b"") + len(scope["query_string"]) > MAX_TARGET:
            return 414, f"the address is longer than {MAX_TARGET} bytes"
        if sum(len(name) + len(value) for name, value in scope["headers"]) > MAX_HEADERS:
            return 431, f"the headers are longer than {MAX_HEADERS} bytes"
        hosts = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
        if len(hosts) != 1 or not self._is_ours(hosts[0]):
            return 400, "this server does not go by that host name: start it with --allow-host NAME if it should"
        return None

    def _is_ours(self, host: str) -> bool:
        name = host.rpartition("]")[0].removeprefix("[") if host.startswith("[") else host.partition(":")[0]
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name.lower() in self.names
        return True
