"""Results as text."""

from collections.abc import Mapping
from typing import Any

COLUMNS = {
    "recall@1": "Recall@1",
    "recall@2": "Recall@2",
    "recall@4": "Recall@4",
    "recall@8": "Recall@8",
    "r_precision": "R-Precision",
    "map@r": "MAP@R",
}


def format_table(results: Mapping[str, Mapping[str, Any]], columns: Mapping[str, str] | None = None) -> str:
    """Returns a text table, one row a result, in percent.

    Args:
        results: Name of the row -> scores in [0, 1] under the keys of a report; a missing one is shown as "-".
        columns: Key -> heading; by default Recall@1/2/4/8, R-Precision and MAP@R.

    >>> print(format_table({"before": {"recall@1": 0.5}}, {"recall@1": "Recall@1"}))
             Recall@1
    before      50.00
    """
    columns = COLUMNS if columns is None else columns
    first = max((len(name) for name in results), default=0)
    widths = {key: max(len(heading), 6) for key, heading in columns.items()}
    lines = [" ".join([" " * first, *(f"{heading:>{widths[key] + 2}}" for key, heading in columns.items())])]
    for name, scores in results.items():
        cells = [f"{_percent(scores.get(key)):>{widths[key] + 2}}" for key in columns]
        lines.append(" ".join([f"{name:<{first}}", *cells]))
    return "\n".join(lines)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"
