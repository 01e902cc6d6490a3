"""A state of an index in Milvus: candidates come from Milvus, and are scored and ordered here."""

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from hgsl.common.errors import InputError
from hgsl.evaluation.knn.vectors import Floats, Vectors
from hgsl.search.milvus.client import milvus_errors
from hgsl.search.milvus.expression import expression_of
from hgsl.search.milvus.schema import BATCH, FLAT, MAX_LIMIT, METRIC, PAGE, index_parameters, scan
from hgsl.search.stores.protocol import Hit
from hgsl.search.where.nodes import Both, Comparison, Condition

STALE_SECONDS = 6.0  # after which a "Bounded" search of a server sees a row: its tolerance for faster answers is 5
MAX_READ = 1_000_000  # vectors that an exact search reads
MARGIN = 16  # candidates beyond the requested ones
WIDER = 4  # factor by which a further search increases the candidates
NOISE = 1e-5  # of a float32 similarity
ANSWER_BYTES = 32 << 20  # vectors of candidates in one answer, of which gRPC allows 64 MB
IMAGE_FIELDS = ["id", "path", "label"]


class MilvusSnapshot:
    """A state of an index in Milvus; it stays readable while it is the current state or the one before that.

    Args:
        client: The connection.
        uri: Its address, for messages.
        collection: Of the images.
        state: Number of the state.
        record: Its settings.
    """

    def __init__(self, client: Any, uri: str, collection: str, state: int, record: dict[str, Any]) -> None:
        self.record: dict[str, Any] = record
        self.labels: Mapping[str, int] = record["label_counts"]
        name, _, self._search_parameters = index_parameters(record["index_type"])
        self.exact: bool = name == FLAT
        self._client, self._uri, self._collection = client, uri, collection
        self._visible = f"since <= {state} and until > {state}"
        self._opened = time.monotonic()

    @property
    def _consistency(self) -> str:
        """Of a request: ``Strong`` waits for the rows of the last seconds, which a state may have when it is opened."""
        return "Bounded" if time.monotonic() - self._opened > STALE_SECONDS else "Strong"

    def __len__(self) -> int:
        return int(self.record["images"])

    def search(self, queries: Vectors, k: int, where: Condition | None = None) -> list[list[Hit]]:
        """Returns the k nearest images of each query that satisfy a condition."""
        if k > MAX_LIMIT:
            raise InputError(f"k must be at most {MAX_LIMIT:,} in Milvus, found {k:,}")
        results: list[list[Hit]] = []
        size = max(1, ANSWER_BYTES // (4 * queries.width * (k + MARGIN)))
        for chunk in queries.chunks(size):
            results += self._nearest(queries.rows(chunk), k, min(k + MARGIN, MAX_LIMIT), self._filter(where))
        return results

    def search_exactly(self, queries: Vectors, k: int) -> list[list[Hit]]:
        """Returns the k nearest images of each query by reading every vector.

        Raises:
            InputError: There are more than ``MAX_READ``.
        """
        if len(self) > MAX_READ:
            raise InputError(f"exact search reads every vector from Milvus, at most {MAX_READ:,}")
        rows = queries.rows(slice(0, len(queries)))
        best: list[list[Hit]] = [[] for _ in range(len(rows))]
        size = min(PAGE, max(1, ANSWER_BYTES // (4 * queries.width)))
        with milvus_errors(self._uri):
            for entities in self._pages(self._visible, [*IMAGE_FIELDS, "vector"], size):
                best = _merged(best, rows, entities, k)
        return best

    def count(self, where: Condition | None = None) -> int:
        """Returns the number of images that satisfy a condition."""
        if where is None:
            return len(self)
        with milvus_errors(self._uri):
            [answer] = self._client.query(
                self._collection,
                filter=self._filter(where),
                output_fields=["count(*)"],
                consistency_level=self._consistency,
            )
        return int(answer["count(*)"])

    def images(self, numbers: Sequence[int]) -> list[Hit]:
        """Returns images by their numbers; unknown numbers are left out."""
        entities = {entity["id"]: entity for entity in self._query(numbers, IMAGE_FIELDS)}
        return [_hit(entities[number], 1.0) for number in numbers if number in entities]

    def vectors(self, numbers: Sequence[int]) -> Floats:
        """Returns the vectors (B, D) of images."""
        vectors = {entity["id"]: entity["vector"] for entity in self._query(numbers, ["id", "vector"])}
        return np.array([vectors[number] for number in numbers], dtype=np.float32)

    def spread(self, count: int, where: Condition | None = None) -> list[int]:
        """Returns numbers of images, spaced over those of the index, or over the first that satisfy a condition."""
        if where is None:
            numbers = np.unique(np.linspace(0, self.record["next_id"] - 1, 4 * count).astype(int)).tolist()
            available = [image.id for image in self.images(numbers)]
        else:
            available = self._numbers(where, min(MAX_LIMIT, 50 * count))
        if where is None and len(available) < min(count, len(self)):
            available = self._numbers(None, min(MAX_LIMIT, 50 * count))
        chosen = np.unique(np.linspace(0, len(available) - 1, count).astype(int)) if available else ()
        return [available[position] for position in chosen]

    def labeled(self) -> tuple[list[int], list[str]]:
        """Returns the numbers and the labels of the images that have one, in the order of their paths."""
        with milvus_errors(self._uri):
            pages = self._pages(f'{self._visible} and label != ""', IMAGE_FIELDS, PAGE)
            entities = [entity for page in pages for entity in page]
        entities.sort(key=lambda entity: entity["path"])
        return [entity["id"] for entity in entities], [entity["label"] for entity in entities]

    def nearest_of_other_label(self, numbers: Sequence[int]) -> tuple[Floats, list[str]]:
        """Returns the similarity (Q,) and the label of the nearest image of another label, one search per label."""
        labels = {image.id: image.label or "" for image in self.images(numbers)}
        vectors = self.vectors(numbers)
        scores, nearest = np.empty(len(numbers), np.float32), [""] * len(numbers)
        for label in sorted(set(labels.values())):
            positions = [position for position, number in enumerate(numbers) if labels[number] == label]
            others = Both(Comparison("label", "!=", (label,)), Comparison("label", "!=", ("",)))
            results = self.search(Vectors(vectors[positions], None, 1.0), 1, others)
            for position, hits in zip(positions, results, strict=True):
                # An approximate index may find none of them: no threshold then accepts this image.
                similarity, name = (hits[0].similarity, hits[0].label or "") if hits else (-1.0, label)
                scores[position], nearest[position] = similarity, name
        return scores, nearest

    def _nearest(self, queries: Floats, k: int, limit: int, expression: str) -> list[list[Hit]]:
        """The k nearest of each query among ``limit`` candidates, or more where an omitted one could be among them."""
        with milvus_errors(self._uri):
            candidates = self._client.search(
                self._collection,
                data=queries.tolist(),
                anns_field="vector",
                limit=limit,
                filter=expression,
                output_fields=[*IMAGE_FIELDS, "vector"],
                search_params={"metric_type": METRIC, "params": self._search_parameters},
                consistency_level=self._consistency,
            )
        results = []
        for query, nearest in zip(queries, candidates, strict=True):
            hits = _scored(query, [dict(candidate["entity"]) for candidate in nearest])
            is_cut = len(nearest) == limit < MAX_LIMIT
            if self.exact and is_cut and nearest[-1]["distance"] > hits[k - 1].similarity - NOISE:
                [hits] = self._nearest(query[None], k, min(WIDER * limit, MAX_LIMIT), expression)
            results.append(hits[:k])
        return results

    def _pages(self, expression: str, fields: list[str], size: int) -> Iterator[list[dict[str, Any]]]:
        """Reads the rows that satisfy an expression, ``size`` numbers at a time."""
        return scan(self._client, self._collection, expression, fields, range(self.record["next_id"]), size)

    def _numbers(self, where: Condition | None, limit: int) -> list[int]:
        with milvus_errors(self._uri):
            entities = self._client.query(
                self._collection,
                filter=self._filter(where),
                limit=limit,
                output_fields=["id"],
                consistency_level=self._consistency,
            )
        return sorted(entity["id"] for entity in entities)

    def _query(self, numbers: Sequence[int], fields: list[str]) -> list[dict[str, Any]]:
        """The visible rows with these numbers."""
        entities: list[dict[str, Any]] = []
        for start in range(0, len(numbers), BATCH):
            listed = ", ".join(str(int(number)) for number in numbers[start : start + BATCH])
            with milvus_errors(self._uri):
                entities += self._client.query(
                    self._collection,
                    filter=f"id in [{listed}] and {self._visible}",
                    output_fields=fields,
                    consistency_level=self._consistency,
                )
        return entities

    def _filter(self, where: Condition | None) -> str:
        return self._visible if where is None else f"{self._visible} and {expression_of(where)}"


def _merged(best: list[list[Hit]], queries: Floats, entities: list[dict[str, Any]], k: int) -> list[list[Hit]]:
    """The k nearest of each query among its best so far and further images."""
    if not entities:
        return best
    scores = queries @ np.array([entity["vector"] for entity in entities], dtype=np.float32).T
    least = np.partition(scores, -min(k, len(entities)), axis=1)[:, -min(k, len(entities)), None] - NOISE
    return [
        sorted([*hits, *_scored(query, [entities[number] for number in np.flatnonzero(near)])], key=_order)[:k]
        for hits, query, near in zip(best, queries, scores >= least, strict=True)
    ]


def _scored(query: Floats, entities: list[dict[str, Any]]) -> list[Hit]:
    """Images with their similarities, computed in float64 from the stored vectors and rounded to float32, in order."""
    if not entities:
        return []
    vectors = np.array([entity["vector"] for entity in entities], dtype=np.float32).astype(np.float64)
    similarities = np.einsum("kd,d->k", vectors, query.astype(np.float64)).astype(np.float32)
    hits = [_hit(entity, similarity) for entity, similarity in zip(entities, similarities.tolist(), strict=True)]
    return sorted(hits, key=_order)


def _hit(entity: Mapping[str, Any], similarity: float) -> Hit:
    return Hit(entity["id"], entity["path"], entity["label"] or None, similarity)


def _order(hit: Hit) -> tuple[float, str]:
    return -hit.similarity, hit.path
