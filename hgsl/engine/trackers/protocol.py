"""Protocol of a tracker, and the facts of a run that it is started with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from hgsl.common.paper_tables import markdown_table

Record = tuple[int, Mapping[str, float]]  # step, numbers
Scores = Mapping[str, Mapping[str, float]]  # name of a row -> score -> value


@dataclass(frozen=True)
class TrackedRun:
    """A run as a tracker knows it.

    Attributes:
        folder: The run folder, whose name is that of the run.
        config: The settings as a nested dictionary.
        facts: Hash of the split, seed, versions, machine and start.
        step: The step after which the run starts or continues.
        key: What ``start`` returned before the run was interrupted; None at its beginning.
    """

    folder: Path
    config: Mapping[str, Any]
    facts: Mapping[str, Any]
    step: int = 0
    key: str | None = None

    def flat(self) -> dict[str, Any]:
        """The settings and facts by dotted names."""
        return flat({**self.config, **self.facts})


class Tracker(Protocol):
    """Follows one run; an exception after ``start`` ends the tracking, not the run."""

    def start(self, run: TrackedRun) -> str | None:
        """Begins or continues the tracking, and returns a key by which a resumed run continues it."""

    def log(self, records: Sequence[Record]) -> None:
        """Adds the numbers of some steps, in order."""

    def artifact(self, path: Path) -> None:
        """Adds a file of the run folder."""

    def finish(self, scores: Scores | None) -> None:
        """Ends the tracking, with the scores of a finished run, or None after an interruption or an error."""


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns nested dictionaries as one, with dotted names.

    >>> flat({"train": {"epochs": 3}, "seed": 0})
    {'train.epochs': 3, 'seed': 0}
    """
    result: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        result |= flat(value, f"{name}.") if isinstance(value, Mapping) and value else {name: value}
    return result


def score_columns(scores: Scores) -> list[str]:
    """Returns the names of the scores in any row."""
    return list(dict.fromkeys(name for values in scores.values() for name in values))


def score_table(scores: Scores) -> str:
    """Returns the scores as a table of Markdown.

    >>> print(score_table({"before": {"map@r": 0.25}, "after": {"map@r": 0.5}}), end="")
    |  | map@r |
    |:--|--:|
    | before | 0.2500 |
    | after | 0.5000 |
    """
    columns = score_columns(scores)
    rows = {
        name: [f"{values[column]:.4f}" if column in values else "-" for column in columns]
        for name, values in scores.items()
    }
    return markdown_table(rows, columns, [None] * len(columns))
