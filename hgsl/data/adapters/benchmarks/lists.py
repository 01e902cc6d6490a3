"""Readers of the lists in official archives: columns of text, and MATLAB structs."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.io import loadmat

from hgsl.common.errors import InputError


def read_columns(path: Path, columns: int, skip: int = 0) -> list[list[str]]:
    """Reads a list of ``columns`` values per line, separated by whitespace; the last value may contain spaces.

    Args:
        path: The file; empty lines at its end are ignored.
        columns: Number of values in every line.
        skip: Number of lines to skip at the top.

    Raises:
        FileNotFoundError: There is no such file.
        InputError: It has no lines, or a line has fewer values; the message names the line.
    """
    try:
        lines = path.read_text(encoding="utf-8").rstrip().splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: {error}") from None
    rows = [line.split(maxsplit=columns - 1) for line in lines[skip:]]
    if not rows:
        raise InputError(f"{path} is empty")
    for number, row in enumerate(rows, skip + 1):
        if len(row) != columns:
            raise InputError(f"{path}, line {number}: {len(row)} values, expected {columns}: {lines[number - 1]!r}")
    return [[value.strip() for value in row] for row in rows]


def read_numbered(path: Path, columns: int = 2) -> dict[str, list[str]]:
    """Reads a list whose first column numbers its rows, into a dict: number -> the other values.

    Raises:
        FileNotFoundError: There is no such file.
        InputError: See :func:`read_columns`, or a number occurs twice.
    """
    rows = read_columns(path, columns)
    table = {row[0]: row[1:] for row in rows}
    if len(table) != len(rows):
        raise InputError(f"{path}: {len(rows) - len(table)} rows repeat the number of another row")
    return table


def to_int(value: str, path: Path) -> int:
    """``value`` as an integer.

    Raises:
        InputError: It is not one; the message names the file.
    """
    try:
        return int(value)
    except ValueError:
        raise InputError(f"{path}: {value!r} is not a whole number") from None


def to_floats(rows: Iterable[Sequence[str]], path: Path) -> NDArray[np.float64]:
    """``rows`` of text (N, M) as numbers (N, M).

    Raises:
        InputError: A value is no number; the message names the file.
    """
    try:
        return np.array([[float(value) for value in row] for row in rows])
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None


def read_mat(path: Path, *fields: str) -> list[Any]:
    """Reads variables of a MATLAB file, structs as dicts, arrays with singleton dimensions removed.

    Raises:
        FileNotFoundError: There is no such file.
        InputError: It is damaged, or a variable is missing.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    try:
        content = loadmat(path, simplify_cells=True)
    except Exception as error:  # scipy raises many types for a damaged file
        raise InputError(f"{path} is not a readable MATLAB file: {error}") from None
    missing = [field for field in fields if field not in content]
    if missing:
        raise InputError(f"{path} has no variable {missing[0]!r}: it is not the official file")
    return [content[field] for field in fields]
