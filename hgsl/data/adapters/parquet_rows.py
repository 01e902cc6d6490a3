"""Rows of a Parquet file as text, with their position for messages."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hgsl.common.errors import InputError, first_line
from hgsl.data.adapters.table import Row


@dataclass(frozen=True)
class ParquetRow(Row):
    """A row of a Parquet file; ``line`` is its number, from 0."""

    def __str__(self) -> str:
        return f"{self.table}, row {self.line}"


def read_parquet_rows(file: Path, parquet: Any, columns: Sequence[str] | None = None) -> Iterator[ParquetRow]:
    """The rows of an open file as text.

    Args:
        file: The file, for messages.
        parquet: From :func:`hgsl.data.files.parquet_images.open_parquet`.
        columns: Columns, or fields of structs such as ``image.path``; None for every column.

    Raises:
        InputError: The file is damaged.
    """
    import pyarrow

    names = parquet.schema_arrow.names
    columns = names if columns is None else columns
    present = list(dict.fromkeys(name for name in columns if name in names or name.partition(".")[0] in names))
    line = 0
    try:
        for batch in parquet.iter_batches(columns=present, use_threads=False):
            values = [_values(batch, name) for name in present]
            for row in zip(*values, strict=True):
                yield ParquetRow(dict(zip(present, row, strict=True)), file, line)
                line += 1
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{file} is damaged: {first_line(error)}") from None


def _values(batch: Any, name: str) -> list[str]:
    top, _, part = name.partition(".") if name not in batch.schema.names else (name, "", "")
    values = batch.column(top)
    values = (values.field(part) if part else values).to_pylist()
    return ["" if value is None else value if isinstance(value, str) else str(value) for value in values]
