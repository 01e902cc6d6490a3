"""Conversion of a result to the dictionary of a JSON report, and to CSV."""

import csv
import hashlib
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hgsl.evaluation.bootstrap import intervals
from hgsl.evaluation.result import RetrievalResult
from hgsl.evaluation.task import RetrievalTask


def build_report(
    result: RetrievalResult,
    *,
    protocol: str,
    split_hash: str,
    class_names: Sequence[str] | None = None,
    bootstrap: int = 0,
    per_class: bool = False,
    per_query: bool = False,
    **more: Any,
) -> dict[str, Any]:
    """Returns the contents of a JSON report; its keys are stable.

    Args:
        result: The scores; they and the counts are top-level entries.
        protocol: The protocol that determines queries and gallery.
        split_hash: Reports with equal hashes are comparable; see ``hash_of_task``.
        class_names: Label -> name.
        bootstrap: Number of bootstrap samples of the 95% ``intervals``; 0 omits them.
        per_class: Whether to add ``per_class``, a list of classes with their scores.
        per_query: Whether to add ``per_query``: see ``query_scores``.
        more: Further entries, such as ``versions``.
    """
    report: dict[str, Any] = {**result.to_dict(), "protocol": protocol, "split_hash": split_hash, **more}
    report["macro"] = result.macro()
    if bootstrap:
        values, labels = result.per_query, result.query_labels
        report["intervals"] = {
            "level": 0.95,
            "samples": bootstrap,
            "over_queries": intervals(values, samples=bootstrap),
            "over_classes": intervals(values, labels, samples=bootstrap),
        }
    if per_class:
        report["per_class"] = class_rows(result, class_names)
    if per_query:
        report["per_query"] = query_scores(result)
    return report


def query_scores(result: RetrievalResult) -> dict[str, list[Any]]:
    """Returns ids, labels and every score of the queries, by which two evaluations of one split are paired."""
    scores = {key: [_short(value) for value in values] for key, values in result.per_query.items()}
    return {"id": result.query_ids.tolist(), "label": result.query_labels.tolist(), **scores}


def class_rows(result: RetrievalResult, class_names: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Returns one dictionary per class: ``class``, ``queries`` and every score."""
    class_names = class_names or result.class_names
    counts, scores = result.per_class()
    return [
        {
            "class": str(label) if class_names is None else class_names[label],
            "queries": count,
            **{key: float(values[row]) for key, values in scores.items()},
        }
        for row, (label, count) in enumerate(counts.items())
    ]


def category_rows(result: RetrievalResult, categories: Mapping[int, str]) -> list[dict[str, Any]]:
    """Returns one dictionary per category, such as a coarser class: ``category``, ``queries`` and every score.

    Args:
        result: The scores.
        categories: Id of an image -> name of its category; queries without one are left out.
    """
    names = np.array([categories.get(query, "") for query in result.query_ids.tolist()])
    rows = []
    for name in sorted(set(names.tolist()) - {""}):
        members = names == name
        scores = {key: float(values[members].mean()) for key, values in result.per_query.items()}
        rows.append({"category": name, "queries": int(members.sum()), **scores})
    return rows


def query_csv(result: RetrievalResult, class_names: Sequence[str] | None = None) -> str:
    """Returns a table with one line per query: its id, its class and every score."""
    class_names = class_names or result.class_names
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["id", "class", *result.per_query])
    columns = zip(*result.per_query.values(), strict=True)
    for query, label, scores in zip(result.query_ids.tolist(), result.query_labels.tolist(), columns, strict=True):
        name = label if class_names is None else class_names[label]
        writer.writerow([query, name, *(_short(score) for score in scores)])
    return text.getvalue()


def hash_of_task(task: RetrievalTask) -> str:
    """The first 16 hex digits of a SHA-256 over ids and labels of queries and gallery, for sets without a manifest."""
    digest = hashlib.sha256()
    for values in (task.query_ids, task.query_labels, task.gallery_ids, task.gallery_labels):
        digest.update(np.ascontiguousarray(values, dtype="<i8").tobytes())
    return digest.hexdigest()[:16]


def _short(value: float) -> int | float:
    """0 and 1, which most scores of a query are, without a decimal point."""
    return int(value) if value in (0, 1) else float(value)
