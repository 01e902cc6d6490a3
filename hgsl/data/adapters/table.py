"""Tables of images: CSV files read into rows with their file and line number, and manifests written as CSV files."""

import codecs
import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hgsl.common.errors import InputError
from hgsl.common.files import atomic_path
from hgsl.common.suggestions import nearest
from hgsl.data.manifest import Manifest

PATH_COLUMNS = ("img_path", "path")
BOX_COLUMNS = ("x_1", "y_1", "x_2", "y_2")
ENCODING = "utf-8-sig"
SEPARATORS = ",;\t"
MAX_DIGITS = 18  # of an integer that fits 64 bits


@dataclass(frozen=True)
class Row:
    """One line of a table; ``row["label"]`` is the text in a column.

    Attributes:
        values: Column -> text.
        table: The file.
        line: Number of the line in it, from 1, as in an editor.
    """

    values: dict[str, str]
    table: Path
    line: int

    def __str__(self) -> str:
        return f"{self.table}, line {self.line}"

    def __getitem__(self, column: str) -> str:
        return self.values[column]

    def __contains__(self, column: object) -> bool:
        return column in self.values

    @property
    def path(self) -> str:
        """The text in the column ``img_path`` or ``path``."""
        return next(self.values[name] for name in PATH_COLUMNS if name in self.values)


def find_table(root: Path) -> Path:
    """The table at ``root``: the file itself, or the only ``.csv`` file of the folder.

    Raises:
        FileNotFoundError: There is none.
        InputError: The folder has several.
    """
    if root.is_dir():
        tables = sorted(root.glob("*.csv"))
        if len(tables) > 1:
            names = ", ".join(table.name for table in tables)
            raise InputError(f"csv: {root} has several tables ({names}): give the path of one")
        if tables:
            return tables[0]
    if not root.is_file():
        raise FileNotFoundError(f"csv: there is no table at {root.absolute()}: give the path of a .csv file")
    return root


def read_rows(
    table: Path, encoding: str | None = None, required: Sequence[Sequence[str]] = (PATH_COLUMNS, ("label",))
) -> list[Row]:
    """The rows of a table that has a header line with the required columns: of each group of names, one.

    Args:
        table: The file; see :func:`parse_table`.
        encoding: See :func:`parse_table`.
        required: Groups of names of columns.

    Raises:
        InputError: It cannot be decoded, has no rows or lacks a column, or a row and the header differ in length.
    """
    columns, rows = parse_table(table, encoding)
    _check_columns(table, columns, required)
    if not rows:
        raise InputError(f"{table} has a header but no rows")
    check_lengths(rows, columns)
    return rows


def parse_table(table: Path, encoding: str | None = None) -> tuple[list[str], list[Row]]:
    """The columns and the rows of a table, unchecked.

    Values are separated by commas; by semicolons or tabs, as spreadsheets export them, if the header has no comma. A
    file that begins with the byte order mark of UTF-16 is read as UTF-16 unless another encoding is given.

    Args:
        table: The file.
        encoding: Of the text, where the user can choose it; None for UTF-8.

    Raises:
        InputError: It cannot be decoded or parsed.
    """
    try:
        with table.open(encoding=_encoding(table, encoding), newline="") as file:
            header = file.readline()
            separator = next((mark for mark in SEPARATORS if mark in header), ",")
            file.seek(0)
            # Whitespace after a comma is not part of a value, unless it is quoted.
            reader = csv.DictReader(file, strict=True, skipinitialspace=separator != "\t", delimiter=separator)
            rows = [Row(values, table, reader.line_num) for values in reader]
            columns = list(reader.fieldnames or [])
    except (UnicodeError, LookupError) as error:
        hint = "" if encoding is None else ", or set the option encoding of the data set csv, such as gbk or latin-1"
        raise InputError(f"{table} is not {encoding or ENCODING} text ({error}): save it as UTF-8{hint}") from None
    except csv.Error as error:
        raise InputError(f"{table} is not a comma-separated table: {error}") from None
    return columns, rows


def check_lengths(rows: Sequence[Row], columns: Sequence[str]) -> None:
    """Checks that every row has a value for each column.

    Raises:
        InputError: A row has fewer or more; the message names its line.
    """
    for row in rows:
        if None in row.values or None in row.values.values():
            raise InputError(f"{row}: not {len(columns)} values, as the header has")


def _encoding(table: Path, given: str | None) -> str:
    with table.open("rb") as file:
        is_utf16 = file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    return "utf-16" if is_utf16 and given in (None, ENCODING) else given or ENCODING


def _check_columns(table: Path, columns: Sequence[str], required: Sequence[Sequence[str]]) -> None:
    if len(set(columns) & set(PATH_COLUMNS)) == 2:
        raise InputError(f"{table} has both a column 'img_path' and a column 'path': keep one")
    repeated = next((column for column in columns if column and columns.count(column) > 1), None)
    if repeated is not None:
        raise InputError(f"{table} has two columns {repeated!r}: keep one")
    for wanted in required:
        if not set(wanted) & set(columns):
            close = nearest(wanted[-1], columns)
            hint = f" (is it {close!r}?)" if close else ""
            missing = " or ".join(map(repr, wanted))
            raise InputError(f"{table} has no column {missing}{hint}: its columns are {', '.join(columns) or 'none'}")


def read_labels(rows: Sequence[Row]) -> tuple[list[int], list[str]]:
    """Label numbers and class names of the column ``label``.

    Labels are compared as text: "007" and "7" are two classes. Classes are sorted as integers if every label is an
    integer in canonical form (7, not 007, 7.0 or 7E0), else as text.

    Raises:
        InputError: A label is empty, or two labels differ only in leading or trailing whitespace.
    """
    first: dict[str, Row] = {}  # stripped label -> the first row that has it
    for row in rows:
        stripped = row["label"].strip()
        if not stripped:
            raise InputError(f"{row}: the label is empty, expected a class name or number")
        earlier = first.setdefault(stripped, row)
        if earlier["label"] != row["label"]:
            raise InputError(
                f"{row}: the label {row['label']!r} differs from {earlier['label']!r} in {earlier} by blanks only: "
                "write them alike"
            )
    order = int if all(map(_is_canonical, first)) else str
    names = sorted({row["label"] for row in first.values()}, key=order)
    index = {name: number for number, name in enumerate(names)}
    return [index[row["label"]] for row in rows], names


def write_table(manifest: Manifest, file: str | Path) -> None:
    """Writes a manifest as a table that the adapter ``csv`` reads back to the same split, with ``image_root`` its root.

    Raises:
        InputError: Two class names differ by leading or trailing whitespace only, which a table is not read with.
        OSError: The file cannot be written; nothing is left behind.
    """
    stripped: dict[str, str] = {}
    for name in manifest.class_names:
        other = stripped.setdefault(name.strip(), name)
        if other != name:
            raise InputError(
                f"the classes {other!r} and {name!r} differ by blanks only: rename or merge one, then list"
            )
    columns: dict[str, Any] = {
        "path": manifest.paths,
        "label": [manifest.class_names[label] for label in manifest.labels],
    }
    if any(manifest.split):
        columns["split"] = manifest.split.tolist()
    columns |= {"is_query": manifest.is_query, "is_gallery": manifest.is_gallery}
    if manifest.groups is not None:
        named, categories = manifest.group_names is not None, manifest.categories
        columns["category"] = [categories.get(row, "") for row in manifest.ids.tolist()] if named else manifest.groups
    if manifest.boxes is not None:
        columns |= dict(zip(BOX_COLUMNS, manifest.boxes.T.tolist(), strict=True))
    with atomic_path(file) as temporary, temporary.open("w", encoding="utf-8", newline="") as out:
        writer = csv.writer(out, quoting=csv.QUOTE_NONNUMERIC)  # quotes preserve leading and trailing whitespace
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))


def _is_canonical(text: str) -> bool:
    """Whether ``text`` is an integer as Python prints it."""
    digits = text.removeprefix("-")
    return digits.isascii() and digits.isdecimal() and len(digits) <= MAX_DIGITS and str(int(text)) == text
