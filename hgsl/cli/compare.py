"""``tools/compare.py`` and ``hgsl-compare``: reports side by side, with the difference that is more than luck."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hgsl.cli._main import run
from hgsl.common.errors import InputError
from hgsl.common.files import read_json, write_json
from hgsl.common.tables import columns_of, format_cells, format_table, recall_of
from hgsl.engine.folder.run_folder import QUERIES
from hgsl.evaluation.bootstrap import paired_difference
from hgsl.evaluation.show.plots import write_curves

DESCRIPTION = """Print reports of one split side by side, and by how much each differs from the first: the mean
difference over the same queries with its 95% bootstrap interval. A report is what eval_retrieval.py --json wrote, or
the folder or report.json of a run (its scores after training)."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 after bad input."""
    parser = argparse.ArgumentParser(description=DESCRIPTION)
    parser.add_argument(
        "reports", nargs="+", metavar="REPORT", help="Two or more; the first is what others differ from."
    )
    parser.add_argument("--bootstrap", type=int, default=2000, metavar="N", help="Bootstrap samples (default 2000).")
    parser.add_argument("--seed", type=int, default=0, help="Of the bootstrap (default 0).")
    parser.add_argument("--json", metavar="FILE", help="Also write scores and differences to this file.")
    parser.add_argument("--curves", metavar="FILE", help="Also draw Recall@K of all (.png, .pdf, .svg).")
    flags = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
    return run(lambda: _compare(flags), ends_process=arguments is None)


def _compare(flags: argparse.Namespace) -> None:
    if len(flags.reports) < 2:
        raise InputError(f"one report, {flags.reports[0]}: give at least two to compare")
    reports = {name: _read(Path(path)) for name, path in _names(flags.reports).items()}
    _check_same_split(reports)
    first, *others = reports
    columns = _columns(reports)
    shown = reports[first]
    print(f"{shown['num_queries']:,} queries, {shown['num_gallery']:,} images, split {shown['split_hash']}, in percent")
    print(format_table(reports, columns))

    differences: dict[str, dict[str, list[float]]] = {}
    for name in others:
        found = _differences(reports[first], reports[name], columns, flags)
        if not found:
            print(f"\n{name}: no scores of single queries in both reports, so no paired difference: make them with")
            print("  python tools/eval_retrieval.py --checkpoint RUN --json REPORT")
            continue
        differences[name] = found
        print(f"\n{name} minus {first}, points with 95% interval (* if it excludes 0)")
        cells = [_cell(found[key]) for key in found]
        print(format_cells({"": cells}, [columns[key] for key in found]))
    if flags.json:
        scores = {name: {key: report.get(key) for key in columns} for name, report in reports.items()}
        content = {"split_hash": shown["split_hash"], "scores": scores, "first": first, "differences": differences}
        write_json(flags.json, content)
        print(f"\nwritten: {flags.json}")
    if flags.curves:
        write_curves(flags.curves, {name: recall_of(report) for name, report in reports.items()})
        print(f"written: {flags.curves}")


def _names(paths: Sequence[str]) -> dict[str, str]:
    """Each path by its shortest end that no other has."""
    parts = [Path(path).with_suffix("").parts for path in paths]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return dict(zip(names, paths, strict=True))
    raise InputError(f"a report is given twice ({', '.join(paths)}): compare different ones")


def _read(path: Path) -> dict[str, Any]:
    path = path / "report.json" if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such report")
    content = read_json(path, "a retrieval report")
    if isinstance(content.get("after"), dict):
        content = content["after"]
        queries = path.with_name(QUERIES)
        if queries.is_file():
            content["per_query"] = read_json(queries, "the scores of single queries")
    if "galleries" in content:
        raise InputError(f"{path}: holds several galleries; compare reports of one each")
    if not {"map@r", "split_hash", "protocol", "num_queries"} <= content.keys():
        raise InputError(f"{path}: not a retrieval report: it lacks map@r, split_hash, protocol or num_queries")
    return content


def _check_same_split(reports: Mapping[str, Mapping[str, Any]]) -> None:
    first, *others = reports
    for name in others:
        for key in ("split_hash", "protocol", "num_queries", "num_gallery"):
            ours, theirs = reports[first].get(key), reports[name].get(key)
            if ours != theirs:
                raise InputError(
                    f"{first} and {name} measure different things: {key} {ours} and {theirs}; "
                    "only runs on the same split can be compared"
                )


def _columns(reports: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Recall at every K that any report has, R-Precision and MAP@R."""
    return columns_of(sorted({k for report in reports.values() for k in recall_of(report)}))


def _differences(
    first: Mapping[str, Any], second: Mapping[str, Any], columns: Mapping[str, str], flags: argparse.Namespace
) -> dict[str, list[float]]:
    """Key -> [mean difference, low, high] over the queries that both have, paired by id."""
    ours, theirs = first.get("per_query"), second.get("per_query")
    if ours is None or theirs is None:
        return {}
    ids, rows, other_rows = np.intersect1d(ours["id"], theirs["id"], return_indices=True)
    if len(ids) != len(ours["id"]) or len(ids) != len(theirs["id"]):
        raise InputError("the reports count different queries: evaluate both again on the same images")

    def values(scores: Mapping[str, Any], key: str, order: NDArray[Any]) -> NDArray[np.float64]:
        return np.asarray(scores[key], dtype=np.float64)[order]

    return {
        key: list(
            paired_difference(
                values(ours, key, rows), values(theirs, key, other_rows), samples=flags.bootstrap, seed=flags.seed
            )
        )
        for key in columns
        if key in ours and key in theirs
    }


def _cell(difference: Sequence[float]) -> str:
    mean, low, high = (100 * value for value in difference)
    mark = "*" if low > 0 or high < 0 else " "
    return f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]{mark}"
