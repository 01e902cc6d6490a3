"""The web application: its page, its routes, and errors as JSON."""

import logging
from collections.abc import AsyncIterator, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from starlette.exceptions import HTTPException

from hgsl.common.errors import InputError
from hgsl.search.index import SearchIndex
from hgsl.search.stores.protocol import Hit
from hgsl.search.web import parameters
from hgsl.search.web.batcher import Batcher
from hgsl.search.web.errors import RequestError
from hgsl.search.web.limits import RequestLimits
from hgsl.search.web.metrics import Metrics, MetricsMiddleware
from hgsl.search.web.monitoring import add_monitoring_routes
from hgsl.search.web.queries import Query, answer_all
from hgsl.search.web.request_body import Uploads
from hgsl.search.web.routes import add_heat_routes, add_index_routes, add_search_routes
from hgsl.search.web.served import ServedIndexes
from hgsl.version import __version__

PAGE = Path(__file__).parent / "page"
SCRIPTS = ("page", "crop", "labels", "large", "statistics")
PAGE_FILES = {"/": "index.html", "/page.css": "page.css", **{f"/{name}.js": f"{name}.js" for name in SCRIPTS}}
DECODERS = 2  # images decoded at a time: each takes up to uploads.MAX_REQUEST_MEMORY


def create_app(indexes: SearchIndex | Mapping[str, SearchIndex], names: Iterable[str] = ()) -> FastAPI:
    """Creates the web application over opened indexes.

    Args:
        indexes: The index to search, or several by name; each follows the states that are published in its store.
        names: Host names by which the server may be reached, besides localhost and IP addresses.
    """
    served = ServedIndexes({"": indexes} if isinstance(indexes, SearchIndex) else indexes)
    batcher: Batcher[tuple[SearchIndex, Query], list[Hit]] = Batcher(answer_all)
    decoders = ThreadPoolExecutor(DECODERS, "decode")
    received, metrics = Uploads(), Metrics()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with batcher, served:
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
    app.add_middleware(MetricsMiddleware, metrics=metrics)
    _send_errors_as_json(app)
    for route in PAGE_FILES:
        app.add_route(route, _page_file, include_in_schema=False)
    add_index_routes(app, served, decoders)
    add_search_routes(app, served, batcher, decoders, received)
    add_heat_routes(app, served, decoders, received)
    add_monitoring_routes(app, served, metrics)
    return app


def _send_errors_as_json(app: FastAPI) -> None:
    async def refused(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestError)
        return JSONResponse({"error": error.message}, error.status)

    async def unavailable(_: Request, error: Exception) -> JSONResponse:
        logging.getLogger("uvicorn.error").warning(f"an index cannot be read: {error}")
        return JSONResponse({"error": "the index cannot be read at present: try again in a moment"}, 503)

    async def failed(_: Request, __: Exception) -> JSONResponse:  # the server logs the traceback
        return JSONResponse({"error": "the server failed at this request: its log has the reason"}, 500)

    async def invalid(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        return JSONResponse({"error": f"{'.'.join(str(part) for part in first['loc'][1:])}: {first['msg']}"}, 422)

    async def unknown(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        return JSONResponse({"error": str(error.detail)}, error.status_code, headers=error.headers)

    app.add_exception_handler(RequestError, refused)
    app.add_exception_handler(InputError, unavailable)
    app.add_exception_handler(Exception, failed)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, unknown)


async def _page_file(request: Request) -> FileResponse:
    return FileResponse(PAGE / PAGE_FILES[request.url.path], headers={"cache-control": "no-cache"})
