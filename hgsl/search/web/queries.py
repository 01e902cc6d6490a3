"""Queries of the web API, answered in batches with one forward pass."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from hgsl.search.encoder import OutOfMemory
from hgsl.search.index import Hit, SearchIndex
from hgsl.search.web.errors import RequestError


@dataclass(frozen=True)
class Query:
    """One search.

    Attributes:
        image: The model input of an image, (3, S, S), or the number of an image of the index, which is then excluded.
        k: Number of hits.
        labels: Only images of these labels; all if there are none.
    """

    image: Tensor | int
    k: int
    labels: tuple[str, ...] = ()


def answer_batch(index: SearchIndex, queries: Sequence[Query]) -> list[list[Hit]]:
    """Answers all queries with one forward pass, and one search per choice of labels that they are limited to.

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
    for labels in {query.labels for query in queries}:
        rows = [row for row, query in enumerate(queries) if query.labels == labels]
        depth = max(queries[row].k for row in rows) + 1  # one more: an image of the index is its own neighbor
        results = index.nearest(np.stack([vectors[row] for row in rows]), depth, label=labels or None)
        for row, hits in zip(rows, results, strict=True):
            excluded = queries[row].image if isinstance(queries[row].image, int) else None
            answers[row] = [hit for hit in hits if hit.id != excluded][: queries[row].k]
    return answers
