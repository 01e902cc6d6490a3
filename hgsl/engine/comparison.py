"""Comparison of reports of one split: means and spread over seeds, and paired differences with their intervals."""

import math
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hgsl.common.errors import InputError
from hgsl.common.faiss_factory import FLAT
from hgsl.common.files import as_text, read_json
from hgsl.common.tables import columns_of, recall_of
from hgsl.engine.folder.run_folder import QUERIES, REPORT, SEEDS

MUST_MATCH = ("split_hash", "protocol", "num_queries", "num_gallery")
REQUIRED_KEYS = {"map@r", "split_hash", "protocol", "num_queries"}


@dataclass(frozen=True)
class Contender:
    """One row of a comparison.

    Attributes:
        name: Name of the row.
        reports: One report, or one per seed.
    """

    name: str
    reports: Sequence[Mapping[str, Any]]

    @property
    def mean(self) -> dict[str, float]:
        """Key -> mean score over the seeds, for the scores that all reports have."""
        return {key: statistics.mean(values) for key, values in self.scores.items()}

    @property
    def spread(self) -> dict[str, float]:
        """Key -> standard deviation (n - 1) over the seeds; empty with one report."""
        if len(self.reports) < 2:
            return {}
        return {key: statistics.stdev(values) for key, values in self.scores.items()}

    @property
    def remarks(self) -> list[str]:
        """What the scores include beside the model and the split: post-processing, an approximate index, notes."""
        remarks: list[Any] = []
        for report in self.reports:
            index = report.get("index", FLAT)
            remarks += [*_list(report, "post_processing"), *([] if index == FLAT else [f"index {index}"])]
            remarks += [] if report.get("trained_on") else _list(report, "notes")  # which are stated in numbers
        return list(dict.fromkeys(as_text(remark) for remark in remarks if isinstance(remark, str)))

    @property
    def labels(self) -> NDArray[np.int64] | None:
        """(Q,) labels of the queries, by ascending id; None if the report lacks them, or has only one class."""
        per_query = self.reports[0].get("per_query") or {}
        if len(set(per_query.get("label", ()))) < 2:
            return None
        return np.asarray(per_query["label"])[np.argsort(per_query["id"])]

    @property
    def query_ids(self) -> list[int] | None:
        """Ids of the queries, ascending; None if a report lacks the scores of single queries.

        Raises:
            InputError: The reports of the seeds are of different queries.
        """
        ids = [sorted((report.get("per_query") or {}).get("id", ())) for report in self.reports]
        if not all(ids):
            return None
        if any(other != ids[0] for other in ids):
            raise InputError(f"the seeds of {self.name} have different queries: evaluate them on the same images")
        return ids[0]

    def values(self, key: str) -> NDArray[np.float64] | None:
        """(seeds, Q) scores of single queries, by ascending id; None if a report lacks them."""
        rows = []
        for report in self.reports:
            per_query = report["per_query"]
            if key not in per_query:
                return None
            rows.append(np.asarray(per_query[key], dtype=np.float64)[np.argsort(per_query["id"])])
        return np.stack(rows)

    @property
    def scores(self) -> dict[str, list[float]]:
        """Key -> the score of each seed, for the scores that all reports have."""
        first, *others = self.reports
        return {
            key: [report[key] for report in self.reports]
            for key, value in first.items()
            if isinstance(value, float | int) and all(key in report for report in others)
        }


def _list(report: Mapping[str, Any], key: str) -> list[Any]:
    """A list of a report; empty if it has none."""
    value = report.get(key)
    return value if isinstance(value, list) else []


def read_contenders(paths: Sequence[str]) -> list[Contender]:
    """Reads reports, run folders and folders of several seeds, each named by the shortest unique end of its path.

    Raises:
        FileNotFoundError: There is no report.
        InputError: A file is not a report, one is given twice, or they are of different splits.
    """
    contenders = [Contender(name, _read(Path(path))) for name, path in _names(paths).items()]
    first = contenders[0]
    for other in contenders:
        for report in other.reports:
            for key in MUST_MATCH:
                expected, actual = first.reports[0].get(key), report.get(key)
                if expected != actual:
                    raise InputError(
                        f"{first.name} and {other.name} measure different things: {key} {expected} and {actual}; "
                        "only runs on the same split can be compared"
                    )
    return contenders


def score_columns(contenders: Sequence[Contender]) -> dict[str, str]:
    """Recall at every K that any report has, R-Precision and MAP@R."""
    return columns_of(sorted({k for contender in contenders for k in recall_of(contender.mean)}))


def differences(
    first: Contender, other: Contender, keys: Sequence[str], *, samples: int = 2000, seed: int = 0
) -> dict[str, list[float]]:
    """Returns key -> [mean difference, low, high] of ``other`` minus ``first``, paired by the ids of the queries.

    Classes are resampled, and the variance between seeds is added where there are several; queries are resampled if
    a report lacks their classes.

    Raises:
        InputError: The two are of different queries.
    """
    from hgsl.evaluation.bootstrap import paired_difference  # imports torch; wrong paths are found before it

    ids, other_ids = first.query_ids, other.query_ids
    if ids is None or other_ids is None:
        return {}
    if ids != other_ids:
        raise InputError("the reports have different queries: evaluate both again on the same images")
    intervals = {}
    for key in keys:
        values, other_values = first.values(key), other.values(key)
        if values is not None and other_values is not None:
            interval = paired_difference(values, other_values, first.labels, samples=samples, seed=seed)
            if math.isfinite(interval[1]):  # infinite with a single query
                intervals[key] = list(interval)
    return intervals


def _names(paths: Sequence[str]) -> dict[str, str]:
    """Shortest unique end of a path, without the suffix of a JSON file -> the path."""
    absolute = [path if Path(path).name not in ("", "..") else os.path.abspath(path) for path in paths]
    for suffix in (".json", ""):  # which alone may tell a file from a folder
        parts = [Path(path.removesuffix(suffix)).parts for path in absolute]
        for length in range(1, max(map(len, parts)) + 1):
            names = ["/".join(part[-length:]) for part in parts]
            if len(set(names)) == len(names):
                return dict(zip(names, paths, strict=True))
    raise InputError(f"a report is given twice ({', '.join(paths)}): compare different ones")


def _read(path: Path) -> list[Mapping[str, Any]]:
    if not (path / SEEDS).is_file():
        return [_read_report(path / REPORT if path.is_dir() else path)]
    seeds = read_json(path / SEEDS, "the summary of several seeds").get("seeds", [])
    return [_read_report(path / f"seed_{seed}" / REPORT) for seed in seeds]


def _read_report(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such report; expected a file of hgsl eval --json, or the folder of a finished run"
        )
    content = read_json(path, "a retrieval report")
    if isinstance(content.get("after"), dict):
        if not content["after"]:
            raise InputError(f"{path}: this model was trained on all classes (data.test_share 0) and has no scores")
        content = content["after"]
        queries = path.with_name(QUERIES)
        if queries.is_file():
            content["per_query"] = read_json(queries, "the scores of single queries")
    if "galleries" in content:
        raise InputError(f"{path}: holds several galleries; compare reports of one each")
    if not content.keys() >= REQUIRED_KEYS:
        raise InputError(f"{path}: not a retrieval report: it lacks map@r, split_hash, protocol or num_queries")
    return content
