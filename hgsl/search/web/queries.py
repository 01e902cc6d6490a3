"""Queries of the web API, answered in batches with one forward pass."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from hgsl.search.encoder import OutOfMemory
from hgsl.search.index import SearchIndex
from hgsl.search.stores.protocol import Hit
from hgsl.search.web.errors import RequestError
from hgsl.search.where.nodes import Condition


@dataclass(frozen=True)
class Query:
    """One search.

    Attributes:
        image: The model input of an image, (3, S, S), or the number of an image of the index, which is then excluded.
        k: Number of hits.
        condition: Only images that satisfy it.
    """

    image: Tensor | int
    k: int
    condition: Condition | None = None


def answer_all(requests: Sequence[tuple[SearchIndex, Query]]) -> list[list[Hit]]:
    """Answers the queries of each index, or state of an index, as one batch."""
    answers: list[list[Hit]] = [[] for _ in requests]
    for index in {id(index): index for index, _ in requests}.values():
        rows = [row for row, (other, _) in enumerate(requests) if other is index]
        for row, hits in zip(rows, answer_batch(index, [requests[row][1] for row in rows]), strict=True):
            answers[row] = hits
    return answers


def answer_batch(index: SearchIndex, queries: Sequence[Query]) -> list[list[Hit]]:
    """Answers all queries with one forward pass, and one search per condition that they are limited to.

    Raises:
        RequestError: 503, the batch does not fit in memory.
    """
    tensors = [query.image for query in queries if isinstance(query.image, Tensor)]
    try:
        embedded = iter(index.encoder.vectors(tensors) if tensors else ())
    except OutOfMemory:
        raise RequestError(503, "the server has not enough memory for this search: try again in a moment") from None
    vectors = [next(embedded) if isinstance(query.image, Tensor) else index.vector(query.image) for query in queries]
    answers: list[list[Hit]] = [[] for _ in queries]
    for condition in {query.condition for query in queries}:
        rows = [row for row, query in enumerate(queries) if query.condition == condition]
        depth = max(queries[row].k for row in rows) + 1  # one more: an image of the index is its own neighbor
        results = index.nearest(np.stack([vectors[row] for row in rows]), depth, condition)
        for row, hits in zip(rows, results, strict=True):
            excluded = queries[row].image if isinstance(queries[row].image, int) else None
            answers[row] = [hit for hit in hits if hit.id != excluded][: queries[row].k]
    return answers
