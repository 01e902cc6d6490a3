"""Columns of the table of labels as values that conditions compare: numbers, or texts."""

import re
from collections.abc import Iterable, Mapping

from hgsl.data.adapters.table import PATH_COLUMNS
from hgsl.search.stores.protocol import Value
from hgsl.search.where.nodes import FIELDS, MAX_NUMBER, FieldType

RESERVED = {"and", "or", "not", "in", "id", "vector"}  # words of conditions, and fields of a store
MAX_TEXT = 10_000  # characters of a value


def typed_columns(
    cells: Mapping[str, Mapping[str, str]], notes: list[str]
) -> tuple[dict[str, dict[str, Value]], dict[str, FieldType]]:
    """The values of the columns other than path and label.

    A column is one of numbers if each of its cells is a number or empty, else one of texts; an empty cell is a missing
    value.

    Args:
        cells: Path -> column -> text.
        notes: Messages about columns that cannot be used are appended.

    Returns:
        Path -> column -> value, and column -> type.

    >>> typed_columns({"a.jpg": {"year": "2020", "color": "red"}, "b.jpg": {"year": "", "color": "1"}}, [])
    ({'a.jpg': {'year': 2020.0, 'color': 'red'}, 'b.jpg': {'color': '1'}}, {'year': 'number', 'color': 'text'})
    """
    names = [name for name in next(iter(cells.values()), {}) if name not in (*PATH_COLUMNS, "label")]
    usable = [name for name in names if re.fullmatch(r"[^\W\d]\w*", name) and name not in {*FIELDS, *RESERVED}]
    if unusable := sorted(set(names) - set(usable)):
        notes.append(
            f"no search can use {', '.join(map(repr, unusable))} of the table: name columns with letters, digits and "
            f"underscores, and not {', '.join(sorted({*FIELDS, *RESERVED}))}"
        )
    types: dict[str, FieldType] = {}
    for name in usable:
        types[name] = "number" if _all_numbers(values[name] for values in cells.values()) else "text"
    rows: dict[str, dict[str, Value]] = {}
    for path, texts in cells.items():
        present = {name: texts[name].strip() for name in usable if texts[name].strip()}
        rows[path] = {
            name: float(text) if types[name] == "number" else text[:MAX_TEXT] for name, text in present.items()
        }
    return rows, types


def _all_numbers(texts: Iterable[str]) -> bool:
    return all(_is_number(text) for text in texts if text.strip())


def _is_number(text: str) -> bool:
    try:
        return abs(float(text)) < MAX_NUMBER
    except ValueError:
        return False
