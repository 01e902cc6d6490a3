"""A part: some images of a list, and the Parquet file of their embeddings.

A part is named by the hash of what determines its vectors: the images, the model and the size of a batch. So a part
that exists need not be computed again, and two processes that compute the same part write the same file. The file has
one row per image that has a vector. Its metadata hold a JSON record: the model, what else the caller needs, and the
images that could not be read. The record has checksums of the columns, and one of its own.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hgsl.common.errors import InputError, first_line
from hgsl.common.files import atomic_path
from hgsl.common.fingerprint import array_sum
from hgsl.evaluation.knn.vectors import Floats

FORMAT = 1
PREFIX, SUFFIX = "part-", ".parquet"
VECTOR = "vector"  # column
RECORD, RECORD_SHA256 = b"hgsl", b"hgsl.sha256"  # keys of the metadata
LOCK = ".lock"  # of the folder
PARTS = 256  # number of parts to which a list is divided, if they are of a size within the limits
MIN_IMAGES, MAX_IMAGES = 256, 8192  # in a part
AGAIN = "remove the file, and run the command that wrote it again"

Columns = Mapping[str, Sequence[Any]]  # name -> value of each image; values are of JSON


@dataclass(frozen=True)
class Part:
    """Some consecutive images of a list.

    Attributes:
        name: Hash of what determines the vectors.
        columns: Name -> value of each image.
    """

    name: str
    columns: Columns

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def path(self, folder: Path) -> Path:
        """The file of the part in a folder."""
        return folder / f"{PREFIX}{self.name}{SUFFIX}"


class PartContent(NamedTuple):
    """The result of embedding a part: the images that have a vector, and the others.

    Attributes:
        columns: Name -> value of each image that has a vector.
        vectors: (B, D).
        broken: A list per image that has none: its values, and the reason.
    """

    columns: Columns
    vectors: Floats
    broken: list[list[Any]]


def divide(columns: Columns, batch_size: int, identity: str) -> list[Part]:
    """Divides a list of images into parts of whole batches, so that batches do not depend on the parts.

    Args:
        columns: Name -> value of each image.
        batch_size: Images per forward pass.
        identity: What else determines the vectors.
    """
    count = len(next(iter(columns.values())))
    size = min(max(count // PARTS, MIN_IMAGES), MAX_IMAGES)
    size = max(1, size // batch_size) * batch_size
    slices = [slice(start, start + size) for start in range(0, count, size)]
    return [_part({name: values[part] for name, values in columns.items()}, batch_size, identity) for part in slices]


def _part(columns: Columns, batch_size: int, identity: str) -> Part:
    content = [FORMAT, identity, batch_size, {name: list(values) for name, values in columns.items()}]
    return Part(hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32], columns)


def list_parts(folder: Path) -> list[Path]:
    """The files of parts in a folder, sorted by name."""
    return sorted(folder.glob(f"{PREFIX}*{SUFFIX}"))


def remove_parts(folder: Path) -> None:
    """Removes the parts in a folder, and the folder if it holds nothing else."""
    for path in [*list_parts(folder), folder / LOCK]:
        path.unlink(missing_ok=True)
    with suppress(OSError):
        folder.rmdir()


def write_part(path: Path, content: PartContent, record: Mapping[str, Any]) -> None:
    """Writes a part atomically.

    Args:
        path: Of the file; its folder is created.
        content: The embedded images.
        record: Entries of the record, in JSON.

    Raises:
        OSError: The folder cannot be written, or the disk is full.
    """
    import pyarrow
    from pyarrow import parquet

    vectors = np.ascontiguousarray(content.vectors, dtype=np.float32)
    width = vectors.shape[1] if len(vectors) else 0
    checksums = {name: _checksum(values) for name, values in content.columns.items()}
    entries = {"format": FORMAT, "dimensions": width, "broken": content.broken}
    text = json.dumps({**record, **entries, "checksums": {**checksums, VECTOR: array_sum(vectors)}}).encode()
    matrix = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(vectors.reshape(-1)), max(width, 1))
    columns = {name: pyarrow.array(list(values)) for name, values in content.columns.items()}
    table = pyarrow.table({**columns, VECTOR: matrix})
    table = table.replace_schema_metadata({RECORD: text, RECORD_SHA256: hashlib.sha256(text).hexdigest()})
    with atomic_path(path) as temporary:
        parquet.write_table(table, temporary, compression="none", use_dictionary=False)


def read_record(path: Path) -> dict[str, Any]:
    """Reads the record of a part, from the end of its file.

    Raises:
        InputError: The file is damaged, or is not a part.
    """
    with _opened(path) as (_, record):
        return record


def read_columns(path: Path, columns: Sequence[str]) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """Reads the record and some columns of a part, without its vectors.

    Raises:
        InputError: The file is damaged, or lacks a column.
    """
    with _opened(path) as (file, record):
        return record, _values(path, file, record, columns)


def read_part(path: Path, columns: Sequence[str]) -> tuple[dict[str, Any], dict[str, list[Any]], Floats]:
    """Reads the record, some columns and the vectors, (B, D), of a part.

    Raises:
        InputError: The file is damaged, or lacks a column.
    """
    with _opened(path) as (file, record):
        vectors = file.read(columns=[VECTOR], use_threads=False).column(VECTOR).combine_chunks().flatten().to_numpy()
        if vectors.dtype != np.float32 or array_sum(vectors) != record["checksums"][VECTOR]:
            raise InputError(f"{path} is damaged: {AGAIN}")
        return record, _values(path, file, record, columns), vectors.reshape(-1, record["dimensions"] or 1)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Opens a part and its record; errors name the file."""
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            metadata = file.schema_arrow.metadata or {}
            if RECORD not in metadata:
                raise InputError(f"{path} is not a part of embeddings that hgsl wrote: remove it from the folder")
            text = metadata[RECORD]
            if hashlib.sha256(text).hexdigest().encode() != metadata.get(RECORD_SHA256):
                raise InputError(f"{path} is damaged: {AGAIN}")
            yield file, _checked(path, json.loads(text))
    except FileNotFoundError:
        raise
    except (pyarrow.ArrowException, OSError, KeyError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is damaged ({first_line(error)}): {AGAIN}") from None


def _checked(path: Path, record: dict[str, Any]) -> dict[str, Any]:
    if record["format"] != FORMAT:
        raise InputError(
            f"{path} has format {record['format']}, but this version of hgsl reads {FORMAT}: remove it, or update hgsl"
        )
    return record


def _values(path: Path, file: Any, record: Mapping[str, Any], columns: Sequence[str]) -> dict[str, list[Any]]:
    absent = [name for name in columns if name not in record["checksums"]]
    if absent:
        raise InputError(f"{path} has no column {absent[0]!r}: it holds embeddings of something else than image files")
    table = file.read(columns=list(columns), use_threads=False)
    values = {name: table.column(name).to_pylist() for name in columns}
    if any(_checksum(values[name]) != record["checksums"][name] for name in columns):
        raise InputError(f"{path} is damaged: {AGAIN}")
    return values


def _checksum(values: Sequence[Any]) -> str:
    return hashlib.sha256(json.dumps(list(values), default=str).encode()).hexdigest()[:16]
