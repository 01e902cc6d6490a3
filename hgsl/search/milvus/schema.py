"""The collections of an index, and its images as their rows.

A row is visible in the states from ``since`` up to, but without, ``until``. An update writes rows that begin, and marks
rows that end, with the next state; both become visible when that state is published.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hgsl.common.errors import InputError, unknown
from hgsl.evaluation.knn.vectors import Floats
from hgsl.search.milvus.expression import field_name, restored_value, stored_value
from hgsl.search.stores.protocol import ImageFile, ImageRow

FLAT, METRIC = "FLAT", "IP"  # of unit vectors, this is the cosine similarity
NEVER = 2**62  # ``until`` of a row that does not end
MAX_TEXT = 65_535  # bytes of a text field
BATCH = 1000  # rows per request that have vectors
PAGE = 8192  # rows per request that have none
MAX_LIMIT = 16_384  # results per request, a limit of Milvus
# Index type -> its parameters.
INDEX_TYPES = {
    "FLAT": (),
    "HNSW": ("M", "efConstruction", "ef"),
    "IVF_FLAT": ("nlist", "nprobe"),
    "IVF_SQ8": ("nlist", "nprobe"),
    "IVF_PQ": ("nlist", "m", "nbits", "nprobe"),
    "DISKANN": ("search_list",),
    "SCANN": ("nlist", "nprobe", "reorder_k"),
    "AUTOINDEX": (),
}
SEARCH_PARAMETERS = ("ef", "nprobe", "search_list", "reorder_k")
META_FIELDS = ["id", "path", "label", "size", "mtime", "until"]


def index_parameters(index_type: str) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Splits ``HNSW M=16 efConstruction=200 ef=64`` into type, parameters to build and parameters to search.

    Raises:
        InputError: It is malformed, or the type or a parameter is unknown.
    """
    name, *words = index_type.split() or [""]
    if name not in INDEX_TYPES:
        raise unknown("Milvus index", name, INDEX_TYPES)
    parameters: dict[str, Any] = {}
    for word in words:
        match = re.fullmatch(r"(\w+)=(\d+)", word)
        if match is None:
            raise InputError(f"Milvus index {index_type!r}: expected parameters such as nlist=1024, found {word!r}")
        if match[1] not in INDEX_TYPES[name]:
            raise unknown(f"parameter of the Milvus index {name}", match[1], INDEX_TYPES[name])
        parameters[match[1]] = int(match[2])
    search = {key: value for key, value in parameters.items() if key in SEARCH_PARAMETERS}
    return name, {key: value for key, value in parameters.items() if key not in search}, search


def create_images(client: Any, collection: str, width: int, index_type: str) -> None:
    """Creates the collection of the images."""
    from pymilvus import DataType

    schema = client.create_schema(auto_id=False, enable_dynamic_field=True)
    schema.add_field("id", DataType.INT64, is_primary=True)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=width)
    for name in ("path", "label", "model"):
        schema.add_field(name, DataType.VARCHAR, max_length=MAX_TEXT)
    for name in ("mtime", "since", "until"):
        schema.add_field(name, DataType.INT64)
    for name in ("size", "time"):  # which conditions compare with numbers that need not be whole
        schema.add_field(name, DataType.DOUBLE)
    client.create_collection(
        collection, schema=schema, index_params=_vector_index(client, index_type), consistency_level="Bounded"
    )


def built_type(client: Any, collection: str) -> str | None:
    """The type of the vector index of a collection, without parameters; None if there is no index."""
    description = client.describe_index(collection, "vector")
    return description["index_type"] if description else None


def load_with_index(client: Any, collection: str, index_type: str) -> None:
    """Loads a collection, and builds its vector index before where a process has ended between two requests.

    Milvus loads no collection without an index, which a creation begins and a replacement passes through.
    """
    if built_type(client, collection) is None:
        client.create_index(collection, _vector_index(client, index_type))
    client.load_collection(collection)


def replace_index(client: Any, collection: str, index_type: str) -> None:
    """Builds another vector index for a collection."""
    client.release_collection(collection)
    client.drop_index(collection, "vector")
    client.create_index(collection, _vector_index(client, index_type))
    client.load_collection(collection)


def _vector_index(client: Any, index_type: str) -> Any:
    name, build, _ = index_parameters(index_type)
    parameters = client.prepare_index_params()
    parameters.add_index("vector", index_name="vector", index_type=name, metric_type=METRIC, params=build)
    return parameters


def entities(
    numbers: Sequence[int],
    rows: Sequence[ImageRow],
    vectors: Floats,
    columns: Mapping[str, str],
    model: str,
    since: int,
) -> list[dict[str, Any]]:
    """Images as rows of the collection that begin with a state."""
    return [
        {
            **{"id": number, "vector": vector, "model": model, "since": since, "until": NEVER},
            **{"path": row.file.path, "label": row.label or "", "size": float(row.file.size)},
            **{"mtime": row.file.mtime_ns, "time": row.file.mtime_ns / 1e9},
            **{field_name(name): stored_value(row.values.get(name), kind == "text") for name, kind in columns.items()},
        }
        for number, row, vector in zip(numbers, rows, vectors, strict=True)
    ]


def image_row(entity: Mapping[str, Any], columns: Mapping[str, str]) -> ImageRow:
    """A row of the collection as an image."""
    file = ImageFile(entity["path"], int(entity["size"]), entity["mtime"])
    values = {name: restored_value(entity.get(field_name(name))) for name in columns}
    present = {name: value for name, value in values.items() if value is not None}
    return ImageRow(file, entity["label"] or None, present)


def scan(
    client: Any, collection: str, condition: str, fields: Sequence[str], numbers: range, size: int
) -> Iterator[list[dict[str, Any]]]:
    """Yields the rows that satisfy an expression, in pages of consecutive numbers.

    An iterator of Milvus would not see rows that were just written.

    Args:
        client: The connection.
        collection: Of the images.
        condition: The expression.
        fields: To read.
        numbers: Range of the numbers of the rows.
        size: Numbers of a page.
    """
    for start in range(numbers.start, numbers.stop, size):
        part = f"({condition}) and id >= {start} and id < {min(start + size, numbers.stop)}"
        yield client.query(collection, filter=part, output_fields=list(fields), consistency_level="Strong")


def scan_from(
    client: Any, collection: str, condition: str, fields: Sequence[str], first: int
) -> Iterator[list[dict[str, Any]]]:
    """Yields the rows that satisfy an expression from a number on, of which the last one is not known."""
    [answer] = client.query(
        collection,
        filter=f"({condition}) and id >= {first}",
        output_fields=["count(*)"],
        consistency_level="Strong",
    )
    missing = answer["count(*)"]
    while missing > 0:
        [rows] = scan(client, collection, condition, fields, range(first, first + PAGE), PAGE)
        yield rows
        missing, first = missing - len(rows), first + PAGE
