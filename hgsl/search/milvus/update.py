"""The next state of an index in Milvus: rows that begin and rows that end with it, then its record."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hgsl.common.disk import check_writable
from hgsl.evaluation.knn.vectors import Floats
from hgsl.search.milvus import schema
from hgsl.search.milvus.client import is_server
from hgsl.search.milvus.expression import field_name
from hgsl.search.milvus.snapshot import MilvusSnapshot
from hgsl.search.milvus.states import Lease, read_state, write_state
from hgsl.search.stores.protocol import ImageFile, ImageRow, State

BYTES_PER_IMAGE = 300  # besides its vector, roughly
FLUSH_SECONDS = 5.0  # between requests: the work that a crash can lose


class MilvusUpdate:
    """The next state of an index in Milvus; see :class:`hgsl.search.stores.protocol.Update`.

    Args:
        client: The connection.
        uri: Its address.
        collection: Of the images; that of the states exists.
    """

    def __init__(self, client: Any, uri: str, collection: str) -> None:
        self._client, self._uri, self._collection = client, uri, collection
        self.notes: list[str] = []
        self._number, self._next_id = 0, 0
        self._columns: dict[str, str] = {}
        self._ended_with = [0, 0]  # numbers of rows; see prepare()
        self._rows: dict[int, ImageRow] = {}  # of the previous state and of this update
        self._staged: dict[int, str] = {}  # rows that begin with the next state -> model
        self._ended: set[int] = set()  # rows that are marked to end with it
        self._record: dict[str, Any] = {}
        self._buffer: list[dict[str, Any]] = []
        self._deleted: set[int] = set()
        self._last_flush = time.monotonic()
        self._lease = Lease(client, collection)
        try:
            self.previous = self._read_previous()
        except BaseException:
            self.close()
            raise

    def begin(self, record: Mapping[str, Any]) -> dict[int, ImageRow]:
        """Starts writing; returns the images that an interrupted update has stored."""
        self._record = dict(record)
        schema.index_parameters(record["index_type"])
        model, index_type = record["model"]["fingerprint"], record["index_type"]
        foreign = [number for number, name in self._staged.items() if name != model]
        if self._number == 0 and foreign:  # of a first run with another model, whose vectors may be of another length
            self._client.drop_collection(self._collection)
            self._rows, self._staged, foreign = {}, {}, []
        self._remove(foreign)
        if not self._client.has_collection(self._collection):
            schema.create_images(self._client, self._collection, record["dimensions"], index_type)
        elif self._ended_with[0]:  # readers of the previous state do not see them, either
            self._client.delete(self._collection, filter=f"until < {self._number}")
        same = self._columns == record["columns"]
        self._columns = dict(record["columns"])
        if not same:  # no row counts as equal: each needs the new columns, be they empty
            self._rows = {number: row._replace(values={"": ""}) for number, row in self._rows.items()}
            if self.previous is not None:
                self.previous.rows.update({number: self._rows[number] for number in self.previous.rows})
        return {number: self._rows[number] for number in self._staged}

    def reserve(self, new_images: int, images: int) -> None:
        """Checks that a local file has space; that of a server is not known."""
        if not is_server(self._uri):
            check_writable(self._uri, (4 * self._record["dimensions"] + BYTES_PER_IMAGE) * new_images)

    def upsert(self, rows: Sequence[ImageRow], vectors: Floats) -> None:
        """Adds images, and sends them every few seconds."""
        numbers = list(range(self._next_id, self._next_id + len(rows)))
        self._next_id += len(rows)
        model = self._record["model"]["fingerprint"]
        self._buffer += schema.entities(numbers, rows, vectors, self._columns, model, self._number + 1)
        self._rows |= dict(zip(numbers, rows, strict=True))
        self._staged |= dict.fromkeys(numbers, model)
        if len(self._buffer) >= schema.BATCH or time.monotonic() - self._last_flush > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Sends what was added."""
        self._last_flush = time.monotonic()
        self._lease.check()
        self._send(self._buffer)
        self._buffer = []

    def vectors(self, numbers: Sequence[int]) -> Floats:
        """Returns the vectors of images of the previous state or of an interrupted update."""
        vectors = {entity["id"]: entity["vector"] for entity in self._entities(numbers, ["id", "vector"])}
        return np.array([vectors[number] for number in numbers], dtype=np.float32)

    def delete(self, numbers: Sequence[int]) -> None:
        """Removes images of the previous state or of an interrupted update."""
        self._deleted |= set(numbers)

    def needs_upkeep(self) -> bool:
        """Whether a state must be written although no image has changed: after the deletions of an interrupted run."""
        return self._number == 0 or bool(self._ended)

    def prepare(self, broken: Mapping[ImageFile, str], retrain: bool = False) -> MilvusSnapshot:
        """Writes everything but the record, and opens it."""
        self.flush()
        self._remove([number for number in self._deleted if number in self._staged])
        ending = {number for number in self._deleted if number not in self._staged and number in self._rows}
        self._mark(sorted(ending - self._ended), self._number + 1)
        self._mark(sorted(self._ended - ending), schema.NEVER)  # of an interrupted run, now wanted
        if retrain or not self._has_index():
            schema.replace_index(self._client, self._collection, self._record["index_type"])
        images = [row for number, row in self._rows.items() if number not in ending]
        self._record |= {
            "images": len(images),
            "next_id": self._next_id,
            "ended": [self._ended_with[1], len(ending)],  # rows that end with the current state, and with this one
            "label_counts": dict(Counter(row.label for row in images if row.label is not None)),
            "broken": [[*file, reason] for file, reason in broken.items()],
        }
        if not is_server(self._uri):  # which copies the vectors of rows that are not flushed for each request
            self._client.flush(self._collection)
        return MilvusSnapshot(self._client, self._uri, self._collection, self._number + 1, self._record)

    def publish(self, measured: Mapping[str, Any]) -> dict[str, Any]:
        """Writes the record of the next state."""
        self._lease.check()
        content = {"state": self._number + 1, **self._record, **measured}
        write_state(self._client, self._collection, self._number + 1, content)
        return content

    def close(self) -> None:
        """Lets other processes write."""
        self._lease.release()

    def _read_previous(self) -> State | None:
        self._number, record = read_state(self._client, self._collection)
        self._next_id, self._columns = record.get("next_id", 0), record.get("columns", {})
        self._ended_with = record.get("ended", [0, 0])
        if self._client.has_collection(self._collection):
            schema.load_with_index(self._client, self._collection, record.get("index_type", schema.FLAT))
            self._read_rows()
        if not self._number:
            return None
        broken = {ImageFile(path, size, mtime): reason for path, size, mtime, reason in record["broken"]}
        rows = {number: row for number, row in self._rows.items() if number not in self._staged}
        return State(record, rows, broken)

    def _read_rows(self) -> None:
        """Reads the images of the current state, and those that an interrupted update has left."""
        fields = [*schema.META_FIELDS, *map(field_name, self._columns)]
        source, first = (self._client, self._collection, f"until > {self._number}"), self._next_id
        for page in schema.scan(*source, fields, range(first), schema.PAGE):
            self._rows |= {entity["id"]: schema.image_row(entity, self._columns) for entity in page}
            self._ended |= {entity["id"] for entity in page if entity["until"] != schema.NEVER}
        for page in schema.scan_from(*source, [*fields, "model"], first):
            self._rows |= {entity["id"]: schema.image_row(entity, self._columns) for entity in page}
            self._staged |= {entity["id"]: entity["model"] for entity in page}
        self._next_id = max([first, *(number + 1 for number in self._staged)])

    def _has_index(self) -> bool:
        """Whether the collection has the vector index of the next state; an interrupted update may have left another.

        Parameters of a search need no other index.
        """
        name, build, _ = schema.index_parameters(self._record["index_type"])
        if schema.built_type(self._client, self._collection) != name:
            return False
        return self.previous is None or schema.index_parameters(self.previous.record["index_type"])[1] == build

    def _remove(self, numbers: Sequence[int]) -> None:
        """Removes rows that no state has."""
        for start in range(0, len(numbers), schema.BATCH):
            self._client.delete(self._collection, ids=list(numbers[start : start + schema.BATCH]))
        for number in numbers:
            del self._rows[number], self._staged[number]

    def _mark(self, numbers: Sequence[int], until: int) -> None:
        """Sets the state from which rows are no longer visible."""
        for start in range(0, len(numbers), schema.BATCH):
            part = numbers[start : start + schema.BATCH]
            self._lease.check()
            self._client.upsert(self._collection, [{**row, "until": until} for row in self._entities(part, ["*"])])

    def _entities(self, numbers: Sequence[int], fields: list[str]) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        for start in range(0, len(numbers), schema.BATCH):
            listed = ", ".join(str(number) for number in numbers[start : start + schema.BATCH])
            rows += self._client.query(
                self._collection, filter=f"id in [{listed}]", output_fields=fields, consistency_level="Strong"
            )
        return rows

    def _send(self, entities: Sequence[dict[str, Any]]) -> None:
        for start in range(0, len(entities), schema.BATCH):
            self._client.insert(self._collection, list(entities[start : start + schema.BATCH]))
