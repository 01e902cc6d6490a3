"""The web application: routes of the page, of the index and its images, and of searches."""

import asyncio
import io
from collections.abc import AsyncIterator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from PIL import Image
from starlette.exceptions import HTTPException

from hgsl.common.errors import InputError
from hgsl.search.index import Hit, SearchIndex
from hgsl.search.web import parameters, schemas, uploads
from hgsl.search.web.batcher import Batcher
from hgsl.search.web.errors import RequestError
from hgsl.search.web.heat import heat_maps
from hgsl.search.web.limits import RequestLimits
from hgsl.search.web.queries import Query, answer_batch
from hgsl.search.web.request_body import read_body
from hgsl.search.web.schemas import MAX_K, About, Answer, ImageId, K, Labels, Match, error_responses
from hgsl.version import __version__

PAGE = Path(__file__).parent / "page"
SCRIPTS = ("page", "crop", "labels", "large", "statistics")
PAGE_FILES = {"/": "index.html", "/page.css": "page.css", **{f"/{name}.js": f"{name}.js" for name in SCRIPTS}}
MAX_UPLOADS = 32  # at a time: each holds up to MAX_BYTES
DECODERS = 2  # images decoded at a time: each takes up to uploads.MAX_REQUEST_MEMORY


def create_app(index: SearchIndex, names: Iterable[str] = ()) -> FastAPI:
    """Creates the web application over an opened index.

    Args:
        index: The index to search.
        names: Host names by which the server may be reached, besides localhost and IP addresses.
    """
    batcher: Batcher[Query, list[Hit]] = Batcher(partial(answer_batch, index))
    decoders = ThreadPoolExecutor(DECODERS, "decode")

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with batcher:
            yield
        decoders.shutdown(wait=False, cancel_futures=True)

    # The usual documentation pages load scripts from other sites; /openapi.json describes the API.
    app = FastAPI(
        title="hgsl search",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        dependencies=[Depends(parameters.check_known)],
    )
    app.add_middleware(RequestLimits, names=names)
    _send_errors_as_json(app)
    for route in PAGE_FILES:
        app.add_route(route, _page_file, include_in_schema=False)
    _add_index_routes(app, index, decoders)
    _add_search_routes(app, index, batcher, decoders)
    _add_heat_routes(app, index, decoders)
    return app


def _add_index_routes(app: FastAPI, index: SearchIndex, decoders: ThreadPoolExecutor) -> None:
    @app.get("/api/index", responses=error_responses())
    async def about() -> About:
        """Describes the index and the limits of this server."""
        return About(
            images=len(index),
            labels=dict(sorted(index.labels.items())),
            threshold=index.threshold,
            backbone=index.record["model"]["architecture"]["backbone"],
            dimensions=index.dimensions,
            faiss=index.record["faiss"],
            max_bytes=uploads.MAX_BYTES,
            max_pixels=uploads.MAX_PIXELS,
            max_k=MAX_K,
        )

    @app.get("/api/images", responses=error_responses(404))
    async def images(k: K = 24, label: Labels = (), path: schemas.ImagePath = None) -> list[schemas.Image]:
        """Lists images to start from, spaced evenly over the index or the images of labels, or the one of a path."""
        _check_labels(index, label)
        numbers = index.spread(k, label or None) if path is None else [_find(index, path)]
        return [schemas.Image(**index.image(number)._asdict()) for number in numbers]

    @app.get("/api/images/{image}/jpeg", response_class=Response, responses=schemas.jpeg_responses())
    async def jpeg(request: Request, image: ImageId, side: schemas.Side = 320) -> Response:
        """Sends an image of the index as an upright JPEG whose longer side has at most ``side`` pixels."""
        _check_image(index, image)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(
            decoders, _jpeg_response, index.path(image), side, request.headers.get("if-none-match")
        )


def _add_search_routes(
    app: FastAPI, index: SearchIndex, batcher: Batcher[Query, list[Hit]], decoders: ThreadPoolExecutor
) -> None:
    uploading = asyncio.Semaphore(MAX_UPLOADS)

    async def answer(query: Query) -> Answer:
        hits = await batcher.submit(query)
        matches = [Match(**hit._asdict()) for hit in hits]
        return Answer(match=index.accepts(hits), threshold=index.threshold, hits=matches)

    @app.post(
        "/api/search",
        responses=error_responses(404, 408, 413, 415, 429, 503),
        openapi_extra=schemas.IMAGE_BODY,
    )
    async def search(request: Request, k: K = 24, label: Labels = (), box: schemas.Box = None) -> Answer:
        """Returns the images nearest to the uploaded one: the body is the file itself, whatever its content type."""
        part = uploads.parse_box(box)
        _check_labels(index, label)
        if uploading.locked():
            raise RequestError(429, "too many images are being sent: try again in a moment")
        async with uploading:
            content = await read_body(request)
            loop = asyncio.get_running_loop()
            tensor = await loop.run_in_executor(decoders, uploads.prepare, content, part, index.encoder)
        return await answer(Query(tensor, k, tuple(label)))

    @app.get("/api/images/{image}/similar", responses=error_responses(404, 429, 503))
    async def similar(image: ImageId, k: K = 24, label: Labels = ()) -> Answer:
        """Returns the images nearest to an image of the index, itself excluded."""
        _check_image(index, image)
        _check_labels(index, label)
        return await answer(Query(image, k, tuple(label)))


def _add_heat_routes(app: FastAPI, index: SearchIndex, decoders: ThreadPoolExecutor) -> None:
    async def answer(query: Path | bytes, box: str | None, image: int) -> schemas.Heat:
        part = uploads.parse_box(box)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(decoders, heat_maps, index.encoder, query, part, index.path(image))

    @app.get("/api/images/{image}/heat", responses=error_responses(404, 410, 413))
    async def heat_of_image(image: ImageId, query: schemas.QueryId, box: schemas.Box = None) -> schemas.Heat:
        """Shows which parts make an image of the index similar to another one."""
        _check_image(index, image)
        _check_image(index, query)
        return await answer(index.path(query), box, image)

    @app.post(
        "/api/images/{image}/heat",
        responses=error_responses(404, 408, 410, 413),
        openapi_extra=schemas.IMAGE_BODY,
    )
    async def heat_of_upload(request: Request, image: ImageId, box: schemas.Box = None) -> schemas.Heat:
        """Shows which parts make an image of the index similar to the uploaded one."""
        _check_image(index, image)
        return await answer(await read_body(request), box, image)


def _check_labels(index: SearchIndex, labels: Sequence[str]) -> None:
    if not set(labels) <= set(index.labels):
        raise RequestError(404, "no image of the index has this label")


def _find(index: SearchIndex, path: str) -> int:
    number = index.find(path)
    if number is None:
        raise RequestError(404, "the index has no image of this path")
    return number


def _check_image(index: SearchIndex, image: int) -> None:
    if image >= len(index):
        raise RequestError(404, f"the index has no image {image}: it has {len(index)}")


def _send_errors_as_json(app: FastAPI) -> None:
    async def refused(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestError)
        return JSONResponse({"error": error.message}, error.status)

    async def invalid(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        return JSONResponse({"error": f"{'.'.join(str(part) for part in first['loc'][1:])}: {first['msg']}"}, 422)

    async def unknown(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        return JSONResponse({"error": str(error.detail)}, error.status_code, headers=error.headers)

    app.add_exception_handler(RequestError, refused)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, unknown)


async def _page_file(request: Request) -> FileResponse:
    return FileResponse(PAGE / PAGE_FILES[request.url.path], headers={"cache-control": "no-cache"})


def _jpeg_response(path: Path, side: int, cached: str | None) -> Response:
    """Re-encodes an image, so that only pixels leave this machine, whatever file is at the path."""
    try:
        status = path.stat()
        tag = f'"{status.st_mtime_ns:x}-{status.st_size:x}-{side}"'
        headers = {"etag": tag, "cache-control": "private, no-cache"}
        if cached == tag:
            return Response(status_code=304, headers=headers)
        pixels = uploads.decode_bounded(path, None, side)
    except (InputError, *uploads.FAILURES):
        raise RequestError(410, "this image was deleted or cannot be read any more: update the index") from None
    image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    image.thumbnail((side, side))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return Response(buffer.getvalue(), media_type="image/jpeg", headers=headers)
