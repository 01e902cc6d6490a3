"""Data types of the JSON API, from which ``/openapi.json`` is generated."""

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import Path as PathParameter
from fastapi import Query
from pydantic import BaseModel, Field, StringConstraints

MAX_K = 200


class Image(BaseModel):
    """An image of the index."""

    id: int = Field(description="Its number in the index.")
    path: str = Field(description="Its path in the image folder.")
    label: str | None


class Match(Image):
    """An image of the index with its similarity to the query."""

    similarity: float = Field(description="Cosine similarity, at most 1.")


class Answer(BaseModel):
    """The nearest images, and whether the nearest is similar enough to be a match."""

    match: bool | None = Field(description="False if even the nearest is below the threshold; null without threshold.")
    threshold: float | None
    hits: list[Match]


class Heat(BaseModel):
    """Heat maps of a query and an image: red parts make them similar, blue ones differ."""

    similarity: float
    exact: bool = Field(description="Whether the parts add up to the similarity; false for class tokens.")
    query: str = Field(description="A data URL.")
    image: str = Field(description="A data URL.")


class About(BaseModel):
    """The contents of the index and the limits of this server."""

    images: int
    labels: dict[str, int] = Field(description="Label -> number of images.")
    threshold: float | None
    backbone: str
    dimensions: int
    index_type: str = Field(description="FAISS factory string or Milvus index.")
    fields: dict[str, str] = Field(description="Field of a condition -> text or number.")
    max_bytes: int
    max_pixels: int
    max_k: int


class IndexName(BaseModel):
    """An index of this server."""

    name: str
    images: int


class IndexHealth(BaseModel):
    """The state of an index that is served."""

    state: int
    images: int
    current: bool = Field(description="False if the store could not be looked at, so that there may be a newer state.")


class Health(BaseModel):
    """The server answers."""

    status: str
    indexes: dict[str, IndexHealth]


class Error(BaseModel):
    """The reason why a request was refused."""

    error: str


K = Annotated[int, Query(ge=1, le=MAX_K, description="Number of images.")]
Labels = Annotated[
    Sequence[Annotated[str, StringConstraints(max_length=1000)]],
    Query(max_length=100, description="Only images of this label, or of one of these labels; repeatable."),
]
ImagePath = Annotated[
    str | None, Query(max_length=4096, description="Only the image of this path in the image folder.")
]
Where = Annotated[
    str | None,
    Query(max_length=2000, description='Condition on the images, such as label in ["rose"] and year >= 2020.'),
]
Index = Annotated[str | None, Query(max_length=200, description="Name of the index; by default the first one.")]
ImageId = Annotated[int, PathParameter(ge=0, le=2**53, description="Number of an image in the index.")]
QueryId = Annotated[int, Query(ge=0, le=2**53, description="Number of the image of the index that is the query.")]
Side = Annotated[int, Query(ge=16, le=1600, description="Pixels.")]
Box = Annotated[
    str | None,
    Query(
        description="x1,y1,x2,y2: the part to search, in fractions (0 to 1) of the upright image's width and height."
    ),
]

IMAGE_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}


def error_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The error responses of a route: those of every route, and ``statuses``."""
    return {status: {"model": Error} for status in (400, *statuses, 414, 422, 431)}


def jpeg_responses() -> dict[int | str, dict[str, Any]]:
    """The responses of the route that sends an image."""
    return {
        **error_responses(404, 410, 413, 503),
        200: {"content": {"image/jpeg": {"schema": {"type": "string", "format": "binary"}}}},
        304: {"description": "The browser's copy is current."},
    }
