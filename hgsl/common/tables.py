"""Text tables of retrieval scores and other cells."""

from collections.abc import Mapping, Sequence
from html import escape
from importlib import import_module
from typing import Any

from hgsl.common.errors import InputError


def columns_of(ks: Sequence[int]) -> dict[str, str]:
    """Returns key -> heading of the columns Recall@K for these K, R-Precision and MAP@R."""
    return {**{f"recall@{k}": f"Recall@{k}" for k in ks}, "r_precision": "R-Precision", "map@r": "MAP@R"}


def recall_of(report: Mapping[str, Any]) -> dict[int, float]:
    """Returns K -> Recall@K of a report.

    >>> recall_of({"recall@1": 0.5, "recall@10": 0.9, "map@r": 0.3})
    {1: 0.5, 10: 0.9}
    """
    return {int(key.removeprefix("recall@")): value for key, value in report.items() if key.startswith("recall@")}


def count_of(number: float, singular: str, plural: str | None = None) -> str:
    """Returns a number with its noun.

    >>> count_of(1, "step"), count_of(1200, "step"), count_of(0, "query", "queries")
    ('1 step', '1,200 steps', '0 queries')
    """
    return f"{number:,} {singular if number == 1 else plural or singular + 's'}"


def format_table(results: Mapping[str, Mapping[str, Any]], columns: Mapping[str, str] | None = None) -> str:
    """Returns a text table in percent, with one row per result.

    Args:
        results: Name of the row -> scores in [0, 1], with the keys of a report; a missing score is shown as "-".
        columns: Key -> heading; by default Recall@1/2/4/8, R-Precision and MAP@R.

    >>> print(format_table({"before": {"recall@1": 0.5}}, {"recall@1": "Recall@1"}))
             Recall@1
    before      50.00
    """
    columns = columns_of((1, 2, 4, 8)) if columns is None else columns
    cells = {name: [_percent(scores.get(key)) for key in columns] for name, scores in results.items()}
    return format_cells(cells, list(columns.values()))


def html_table(results: Mapping[str, Mapping[str, Any]], columns: Mapping[str, str]) -> str:
    """Returns the table of :func:`format_table` as HTML, for notebooks.

    >>> html_table({"a<b": {"map@r": 0.5}}, {"map@r": "MAP@R"})
    '<table><tr><th></th><th>MAP@R</th></tr><tr><th>a&lt;b</th><td>50.00</td></tr></table>'
    """
    head = "".join(f"<th>{escape(heading)}</th>" for heading in ["", *columns.values()])
    rows = [
        f"<th>{escape(name)}</th>" + "".join(f"<td>{_percent(scores.get(key))}</td>" for key in columns)
        for name, scores in results.items()
    ]
    return f"<table>{''.join(f'<tr>{row}</tr>' for row in [head, *rows])}</table>"


def frame(columns: Mapping[str, Any], index: str | None = None) -> Any:
    """Returns a pandas DataFrame of these columns.

    Args:
        columns: Name -> values.
        index: The column that becomes the index.

    Raises:
        InputError: pandas is not installed.
    """
    try:
        pandas: Any = import_module("pandas")
    except ImportError:
        raise InputError("to_frame() needs pandas: pip install pandas, or use to_dict()") from None
    table = pandas.DataFrame(dict(columns))
    return table if index is None else table.set_index(index)


def format_cells(rows: Mapping[str, Sequence[str]], headings: Sequence[str]) -> str:
    """Returns a text table: the name of each row, then its cells, aligned to the right."""
    name_width = max((len(name) for name in rows), default=0)
    widths = [
        max(6, len(heading), *(len(cells[column]) for cells in rows.values())) if rows else len(heading)
        for column, heading in enumerate(headings)
    ]
    named_rows = [("", headings), *rows.items()]
    return "\n".join(
        " ".join(
            [f"{name:<{name_width}}", *(f"{cell:>{width + 2}}" for cell, width in zip(cells, widths, strict=True))]
        )
        for name, cells in named_rows
    )


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"
