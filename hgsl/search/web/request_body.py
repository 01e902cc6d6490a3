"""Reading of an uploaded file from a request, limited in size and time."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.requests import ClientDisconnect, Request

from hgsl.search.web.errors import RequestError
from hgsl.search.web.multipart import boundary_of, file_of_form
from hgsl.search.web.uploads import MAX_BYTES

BODY_SECONDS = 30.0  # that an upload may take
MAX_DISCARDED = 4 * MAX_BYTES  # a longer body is not even read to its end
MAX_UPLOADS = 32  # at a time: each holds up to MAX_BYTES


class Uploads:
    """The uploads of a server, of which a limited number is held in memory at a time."""

    def __init__(self) -> None:
        self._free = asyncio.Semaphore(MAX_UPLOADS)

    @asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[bytes]:
        """Yields the uploaded file, which counts as one until the context ends.

        Raises:
            RequestError: 429 too many uploads, and those of :func:`read_body`.
        """
        if self._free.locked():
            raise RequestError(429, "too many images are being sent: try again in a moment")
        async with self._free:
            yield await read_body(request)


async def read_body(request: Request) -> bytes:
    """Returns the uploaded file: the body of a request, or the file in the form that it is.

    A body somewhat over the limit is read to its end and discarded, since a browser reads no response while sending.

    Raises:
        RequestError: 413 too long, 408 too slow, 400 the client disconnected, 422 empty.
    """
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared[:20]) > MAX_DISCARDED:
        raise _too_long()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            content = await _collect(request)
    except TimeoutError:
        raise RequestError(408, f"the image did not arrive within {BODY_SECONDS:.0f} seconds") from None
    except ClientDisconnect:
        raise RequestError(400, "the image did not arrive completely") from None
    if not content:
        raise RequestError(422, "the body is empty: send the bytes of an image file")
    boundary = boundary_of(request.headers.get("content-type", ""))
    return content if boundary is None else file_of_form(content, boundary)


async def _collect(request: Request) -> bytes:
    content, size = bytearray(), 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > MAX_DISCARDED:
            raise _too_long()
        if size > MAX_BYTES:
            content.clear()
        else:
            content += chunk
    if size > MAX_BYTES:
        raise _too_long()
    return bytes(content)


def _too_long() -> RequestError:
    return RequestError(413, f"the file is larger than {MAX_BYTES >> 20} MB: send a smaller one")
