"""The routes: the page, the index, photos by their number, and searches."""

import asyncio
import io
from collections.abc import AsyncIterator, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi import Path as PathParameter
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from torch import Tensor

from hgsl.common.errors import InputError
from hgsl.data.files.images import read_image
from hgsl.search.index import Hit, SearchIndex
from hgsl.search.web import uploads
from hgsl.search.web.batcher import Batcher
from hgsl.search.web.limits import Limits
from hgsl.search.web.questions import Question, answer
from hgsl.search.web.refusal import Refusal
from hgsl.version import __version__

PAGE = Path(__file__).parent / "page"
PAGE_FILES = {"/": "index.html", "/page.css": "page.css", "/page.js": "page.js", "/crop.js": "crop.js"}
MAX_K = 200
BODY_SECONDS = 30.0  # in which a photo must have arrived
MAX_UPLOADS = 32  # at a time: each may hold MAX_BYTES
DECODERS = 2  # photos decoded at a time: each may take 150 MB while it is
BOX = "x1,y1,x2,y2: the part to search, in shares (0 to 1) of the upright photo's width and height"


class Photo(BaseModel):
    """A photo of the index."""

    id: int = Field(description="Its number in the index.")
    path: str = Field(description="Its path in the folder of photos.")
    label: str | None


class Found(Photo):
    """A photo that was found."""

    similarity: float = Field(description="Cosine similarity, at most 1.")


class Answer(BaseModel):
    """The nearest photos, and whether the nearest is near enough to be believed."""

    match: bool | None = Field(description="False if even the nearest is below the threshold; null without threshold.")
    threshold: float | None
    hits: list[Found]


class About(BaseModel):
    """What the index holds, and the limits of this server."""

    photos: int
    labels: dict[str, int] = Field(description="Label -> how many photos.")
    threshold: float | None
    backbone: str
    dimensions: int
    faiss: str
    max_bytes: int
    max_pixels: int
    max_k: int


class Error(BaseModel):
    """Why a request was refused."""

    error: str


K = Annotated[int, Query(ge=1, le=MAX_K, description="How many photos.")]
Label = Annotated[str | None, Query(max_length=1000, description="Only photos of this label.")]
PhotoId = Annotated[int, PathParameter(ge=0, le=2**53, description="Number of a photo in the index.")]


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": Error} for status in (400, *statuses, 414, 422, 431)}


def create_app(index: SearchIndex, names: Iterable[str] = ()) -> FastAPI:
    """The web application over an opened index.

    Args:
        index: What is searched.
        names: Host names it may be reached by, besides localhost and addresses.
    """
    batcher: Batcher[Question, list[Hit]] = Batcher(partial(answer, index))
    pool = ThreadPoolExecutor(DECODERS, "decode")
    uploading = asyncio.Semaphore(MAX_UPLOADS)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with batcher:
            yield
        pool.shutdown()

    # The usual documentation pages load scripts from elsewhere; /openapi.json says all there is to know.
    app = FastAPI(title="hgsl search", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.add_middleware(Limits, names=names)
    _answer_errors_in_json(app)
    for route in PAGE_FILES:
        app.add_route(route, _page_file, include_in_schema=False)

    async def ask(question: Question) -> Answer:
        known_label(question.label)
        hits = await batcher.submit(question)
        found = [Found(**hit._asdict()) for hit in hits]
        return Answer(match=index.accepts(hits), threshold=index.threshold, hits=found)

    def known_label(label: str | None) -> str | None:
        if label is not None and label not in index.labels:
            raise Refusal(404, "no photo of the index has this label")
        return label

    def known(photo: int) -> int:
        if photo >= len(index):
            raise Refusal(404, f"the index has no photo {photo}: it has {len(index)}")
        return photo

    @app.get("/api/index", responses=_errors())
    async def about() -> About:
        """What the index holds."""
        return About(
            photos=len(index),
            labels=dict(sorted(index.labels.items())),
            threshold=index.threshold,
            backbone=index.record["model"]["architecture"]["backbone"],
            dimensions=index.dimensions,
            faiss=index.record["faiss"],
            max_bytes=uploads.MAX_BYTES,
            max_pixels=uploads.MAX_PIXELS,
            max_k=MAX_K,
        )

    @app.get("/api/photos", responses=_errors(404))
    async def photos(k: K = 24, label: Label = None) -> list[Photo]:
        """Photos to start from, spread evenly over the index or over those of a label."""
        return [Photo(**index.photo(place)._asdict()) for place in index.spread(k, known_label(label))]

    body = {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }

    @app.post("/api/search", responses=_errors(404, 408, 413, 415, 429), openapi_extra={"requestBody": body})
    async def search(
        request: Request, k: K = 24, label: Label = None, box: Annotated[str | None, Query(description=BOX)] = None
    ) -> Answer:
        """Finds the photos nearest to the one that is sent: the body is the file itself, whatever its content type."""
        part = uploads.parse_box(box)
        if uploading.locked():
            raise Refusal(429, "too many photos are being sent: try again in a moment")
        async with uploading:
            content = await _body(request)
            loop = asyncio.get_running_loop()
            tensor = await loop.run_in_executor(pool, _prepare, index, content, part)
        return await ask(Question(tensor, k, label))

    @app.get("/api/photos/{photo}/similar", responses=_errors(404, 429))
    async def similar(photo: PhotoId, k: K = 24, label: Label = None) -> Answer:
        """Finds the photos nearest to one of the index, itself left out."""
        return await ask(Question(known(photo), k, label))

    @app.get("/api/photos/{photo}/image", response_class=Response, responses=_image_responses())
    async def image(
        request: Request, photo: PhotoId, side: Annotated[int, Query(ge=16, le=1600, description="Pixels.")] = 320
    ) -> Response:
        """A photo of the index as an upright JPEG whose longer side has at most so many pixels."""
        path = index.path(known(photo))
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(pool, _image, path, side, request.headers.get("if-none-match"))

    return app


def _image_responses() -> dict[int | str, dict[str, Any]]:
    return {
        **_errors(404, 410),
        200: {"content": {"image/jpeg": {"schema": {"type": "string", "format": "binary"}}}},
        304: {"description": "The browser's copy is current."},
    }


def _answer_errors_in_json(app: FastAPI) -> None:
    async def refused(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, Refusal)
        return JSONResponse({"error": error.message}, error.status)

    async def invalid(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        return JSONResponse({"error": f"{'.'.join(str(part) for part in first['loc'][1:])}: {first['msg']}"}, 422)

    async def unknown(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        return JSONResponse({"error": str(error.detail)}, error.status_code, headers=error.headers)

    app.add_exception_handler(Refusal, refused)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, unknown)


async def _page_file(request: Request) -> FileResponse:
    return FileResponse(PAGE / PAGE_FILES[request.url.path], headers={"cache-control": "no-cache"})


async def _body(request: Request) -> bytes:
    """The body, if it is not too long and comes in time.

    What is somewhat too long is read to its end and thrown away: a browser that is still sending hears no answer.
    """
    declared = request.headers.get("content-length", "")
    too_long = Refusal(413, f"the file is larger than {uploads.MAX_BYTES >> 20} MB: send a smaller one")
    if declared.isdecimal() and int(declared[:20]) > 4 * uploads.MAX_BYTES:
        raise too_long
    content, size = bytearray(), 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                size += len(chunk)
                if size > 4 * uploads.MAX_BYTES:
                    raise too_long
                if size > uploads.MAX_BYTES:
                    content.clear()
                else:
                    content += chunk
    except TimeoutError:
        raise Refusal(408, f"the photo did not arrive within {BODY_SECONDS:.0f} seconds") from None
    except ClientDisconnect:
        raise Refusal(400, "the photo did not arrive whole") from None
    if size > uploads.MAX_BYTES:
        raise too_long
    if not content:
        raise Refusal(422, "the body is empty: send the bytes of a photo")
    return bytes(content)


def _prepare(index: SearchIndex, content: bytes, box: uploads.Box | None) -> Tensor:
    encoder = index.encoder
    return encoder.prepare(uploads.decode(content, box, encoder.side))


def _image(path: Path, side: int, cached: str | None) -> Response:
    """Drawn anew, so that what leaves this machine is always a picture, whatever lies at the path."""
    try:
        facts = path.stat()
        tag = f'"{facts.st_mtime_ns:x}-{facts.st_size:x}-{side}"'
        headers = {"etag": tag, "cache-control": "private, no-cache"}
        if cached == tag:
            return Response(status_code=304, headers=headers)
        picture = read_image(path, side)
    except (InputError, OSError):
        raise Refusal(410, "this photo is no longer there, or no longer readable: bring the index up to date") from None
    picture.thumbnail((side, side))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=85)
    return Response(buffer.getvalue(), media_type="image/jpeg", headers=headers)
