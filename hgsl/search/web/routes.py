"""Routes of the indexes and their images, of searches, and of heat maps."""

import asyncio
import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.responses import Response
from PIL import Image

from hgsl.common.errors import InputError
from hgsl.common.locations import locate, open_image
from hgsl.search.index import SearchIndex
from hgsl.search.stores.protocol import Hit
from hgsl.search.web import schemas, uploads
from hgsl.search.web.batcher import Batcher
from hgsl.search.web.errors import RequestError
from hgsl.search.web.heat import heat_maps
from hgsl.search.web.queries import Query
from hgsl.search.web.request_body import Uploads
from hgsl.search.web.schemas import MAX_K, About, Answer, ImageId, Index, K, Labels, Match, Where, error_responses
from hgsl.search.web.served import ServedIndexes
from hgsl.search.where.nodes import Condition, fields_of


def add_index_routes(app: FastAPI, served: ServedIndexes, decoders: ThreadPoolExecutor) -> None:
    """Adds the routes that describe indexes and send their images."""

    @app.get("/api/indexes", responses=error_responses())
    async def indexes() -> list[schemas.IndexName]:
        """Lists the indexes of this server."""
        return [schemas.IndexName(name=name, images=len(one.index)) for name, one in served]

    @app.get("/api/index", responses=error_responses(404))
    async def about(index: Index = None) -> About:
        """Describes an index and the limits of this server."""
        opened = served.find(index)
        return About(
            images=len(opened),
            labels=dict(sorted(opened.labels.items())),
            threshold=opened.threshold,
            backbone=opened.record["model"]["architecture"]["backbone"],
            dimensions=opened.dimensions,
            index_type=opened.record["index_type"],
            fields=dict(fields_of(opened.record["columns"])),
            max_bytes=uploads.MAX_BYTES,
            max_pixels=uploads.MAX_PIXELS,
            max_k=MAX_K,
        )

    @app.get("/api/images", responses=error_responses(404, 503))
    async def images(
        k: K = 24,
        label: Labels = (),
        path: schemas.ImagePath = None,
        where: Where = None,
        index: Index = None,
    ) -> list[schemas.Image]:
        """Lists images to start from, spaced over those of the index, of labels or of a condition, or one by path."""
        opened = served.find(index)
        condition = _condition(opened, label, where)
        if path is None:
            hits = await asyncio.to_thread(lambda: opened.images(opened.spread(k, condition)))
        else:
            hits = await asyncio.to_thread(_images_of_path, opened, path)
        return [schemas.Image(**hit._asdict()) for hit in hits]

    @app.get("/api/images/{image}/jpeg", response_class=Response, responses=schemas.jpeg_responses())
    async def jpeg(request: Request, image: ImageId, side: schemas.Side = 320, index: Index = None) -> Response:
        """Sends an image of the index as an upright JPEG whose longer side has at most ``side`` pixels."""
        path = await asyncio.to_thread(_path_of, served.find(index), image)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(decoders, _jpeg_response, path, side, request.headers.get("if-none-match"))


def add_search_routes(
    app: FastAPI,
    served: ServedIndexes,
    batcher: Batcher[tuple[SearchIndex, Query], list[Hit]],
    decoders: ThreadPoolExecutor,
    received: Uploads,
) -> None:
    """Adds the routes that search by an upload or by an image of an index."""

    async def answer(index: SearchIndex, query: Query) -> Answer:
        hits = await batcher.submit((index, query))
        matches = [Match(**hit._asdict()) for hit in hits]
        return Answer(match=index.accepts(hits), threshold=index.threshold, hits=matches)

    @app.post(
        "/api/search",
        responses=error_responses(404, 408, 413, 415, 429, 503),
        openapi_extra=schemas.IMAGE_BODY,
    )
    async def search(
        request: Request,
        k: K = 24,
        label: Labels = (),
        where: Where = None,
        box: schemas.Box = None,
        index: Index = None,
    ) -> Answer:
        """Returns the images nearest to the uploaded one: the body is the file itself, whatever its content type."""
        opened = served.find(index)
        part = uploads.parse_box(box)
        condition = _condition(opened, label, where)
        async with received.read(request) as content:
            loop = asyncio.get_running_loop()
            tensor = await loop.run_in_executor(decoders, uploads.prepare, content, part, opened.encoder)
        return await answer(opened, Query(tensor, k, condition))

    @app.get("/api/images/{image}/similar", responses=error_responses(404, 429, 503))
    async def similar(
        image: ImageId, k: K = 24, label: Labels = (), where: Where = None, index: Index = None
    ) -> Answer:
        """Returns the images nearest to an image of the index, itself excluded."""
        opened = served.find(index)
        await asyncio.to_thread(_path_of, opened, image)
        return await answer(opened, Query(image, k, _condition(opened, label, where)))


def add_heat_routes(app: FastAPI, served: ServedIndexes, decoders: ThreadPoolExecutor, received: Uploads) -> None:
    """Adds the routes that show which parts of two images make them similar."""

    async def answer(index: SearchIndex, query: Path | str | bytes, box: str | None, image: Path | str) -> schemas.Heat:
        part = uploads.parse_box(box)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(decoders, heat_maps, index.encoder, query, part, image)

    @app.get("/api/images/{image}/heat", responses=error_responses(404, 410, 413, 503))
    async def heat_of_image(
        image: ImageId, query: schemas.QueryId, box: schemas.Box = None, index: Index = None
    ) -> schemas.Heat:
        """Shows which parts make an image of the index similar to another one."""
        opened = served.find(index)
        paths = [await asyncio.to_thread(_path_of, opened, number) for number in (image, query)]
        return await answer(opened, paths[1], box, paths[0])

    @app.post(
        "/api/images/{image}/heat",
        responses=error_responses(404, 408, 410, 413, 429, 503),
        openapi_extra=schemas.IMAGE_BODY,
    )
    async def heat_of_upload(
        request: Request, image: ImageId, box: schemas.Box = None, index: Index = None
    ) -> schemas.Heat:
        """Shows which parts make an image of the index similar to the uploaded one."""
        opened = served.find(index)
        path = await asyncio.to_thread(_path_of, opened, image)
        async with received.read(request) as content:
            return await answer(opened, content, box, path)


def _condition(index: SearchIndex, labels: Sequence[str], where: str | None) -> Condition | None:
    if not set(labels) <= set(index.labels):
        raise RequestError(404, "no image of the index has this label")
    try:
        return index.condition(where, labels or None)
    except InputError as error:
        raise RequestError(422, str(error)) from None


def _images_of_path(index: SearchIndex, path: str) -> list[Hit]:
    number = index.find(path)
    if number is None:
        raise RequestError(404, "the index has no image of this path")
    return index.images([number])


def _path_of(index: SearchIndex, image: int) -> Path | str:
    hits = index.images([image])
    if not hits:
        raise RequestError(404, f"the index has no image {image}: it has {len(index)}")
    return locate(index.root, hits[0].path)


def _jpeg_response(location: Path | str, side: int, cached: str | None) -> Response:
    """Re-encodes an image of the index, so that only pixels leave this machine, whatever file is at the location."""
    headers = {"cache-control": "private, max-age=600"}
    try:
        if isinstance(location, Path):
            status = location.stat()
            tag = f'"{status.st_mtime_ns:x}-{status.st_size:x}-{side}"'
            headers = {"etag": tag, "cache-control": "private, no-cache"}
            if cached == tag:
                return Response(status_code=304, headers=headers)
        pixels = uploads.decode_bounded(open_image(location), None, side)
    except (InputError, *uploads.FAILURES):
        raise RequestError(410, "this image was deleted or cannot be read any more: update the index") from None
    image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    image.thumbnail((side, side))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return Response(buffer.getvalue(), media_type="image/jpeg", headers=headers)
