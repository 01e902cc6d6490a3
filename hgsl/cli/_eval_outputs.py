"""What an evaluation leaves behind: tables on the terminal, and the files that its flags name."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jsonargparse import Namespace

from hgsl.cli._eval_images import Subject
from hgsl.common.errors import InputError
from hgsl.common.files import write_json, write_text
from hgsl.common.no_match import write_no_match
from hgsl.common.tables import columns_of, format_table
from hgsl.engine.folder.environment import versions
from hgsl.engine.folder.logging import read_metrics
from hgsl.engine.folder.run_folder import METRICS
from hgsl.evaluation import Ranking, RetrievalResult, RetrievalTask
from hgsl.evaluation.show.html import PageOptions, write_html
from hgsl.evaluation.show.pictures import write_contact_sheet
from hgsl.evaluation.show.plots import write_curves
from hgsl.evaluation.show.report import build_report, class_rows, hash_of_task, query_csv

SHEET_ROWS, SHEET_COLUMNS = 8, 6


@dataclass(frozen=True)
class Measured:
    """One gallery's task with its scores."""

    task: RetrievalTask
    ranking: Ranking
    no_match: Mapping[str, Any] | None = None

    @property
    def result(self) -> RetrievalResult:
        return self.ranking.result


def print_tables(
    subject: Subject, measured: Mapping[str, Measured], reports: Mapping[str, Any], per_class: bool
) -> None:
    """Prints the scores, and what a reader must know to read them."""
    for name, part in measured.items():
        result, report = part.result, reports[name]
        where = f" ({name})" if len(measured) > 1 else ""
        print(f"\n{result.num_queries:,} queries, {result.num_gallery:,} images{where}, in percent")
        if result.num_skipped:
            print(f"{result.num_skipped:,} queries have no other image of their class and do not count")
        if result.index_overlap is not None:
            print(f"index {result.index} finds {100 * result.index_overlap:.2f}% of the true {max(result.ks)} nearest")
        for note in [*report["notes"], *report["post_processing"]]:
            print(f"note: {note}")
    columns = columns_of(next(iter(measured.values())).result.ks)
    rows: dict[str, Any] = dict(reports)
    if len(measured) == 1:
        rows["mean over classes"] = reports[subject.name if subject.name in reports else next(iter(reports))]["macro"]
    print(format_table(rows, columns))
    for name, report in reports.items():
        if "intervals" in report:
            spans = report["intervals"]
            print(f"\n{100 * spans['level']:.0f}% intervals of {name}, {spans['samples']:,} samples")
            ends = {
                f"{kind}, {end}": {key: span[i] for key, span in spans[f"over_{kind}"].items()}
                for kind in ("queries", "classes")
                for i, end in enumerate(("low", "high"))
            }
            print(format_table(ends, columns))
        if report.get("nmi") is not None:
            print(f"\nk-means of {name}: NMI {100 * report['nmi']:.2f}, AMI {100 * report['ami']:.2f}")
        if "no_match" in report:
            _print_no_match(report["no_match"])
    if per_class:
        for part in measured.values():
            classes = class_rows(part.result, subject.class_names)
            print()
            print(format_table({f"{row['class']} ({row['queries']})": row for row in classes}, columns))


def reports_of(subject: Subject, measured: Mapping[str, Measured], flags: Namespace) -> dict[str, dict[str, Any]]:
    """The JSON report of each gallery."""
    reports = {}
    for name, part in measured.items():
        facts = dict(subject.facts)
        split_hash = facts.pop("split_hash", None) or hash_of_task(part.task)
        reports[name] = build_report(
            part.result,
            protocol=facts.pop("protocol"),
            split_hash=split_hash,
            class_names=subject.class_names,
            bootstrap=flags.bootstrap,
            per_class=flags.per_class,
            per_query=bool(flags.json),
            post_processing=list(subject.steps),
            metric=part.task.metric,
            **({} if part.no_match is None else {"no_match": part.no_match}),
            **facts,
            versions=versions(),
        )
    return reports


def write_files(
    subject: Subject, measured: Mapping[str, Measured], reports: Mapping[str, dict[str, Any]], flags: Namespace
) -> None:
    """Writes every file that a flag names, and says so."""
    single = next(iter(measured))
    if len(measured) > 1:
        for flag in ("csv", "html", "sheet"):
            if getattr(flags, flag):
                raise InputError(f"--{flag} shows one gallery, but {len(measured)} are given: evaluate them one by one")
    part, report = measured[single], reports[single]
    result = part.result
    if flags.json:
        write_json(flags.json, report if len(measured) == 1 else {"galleries": reports})
    if flags.csv:
        write_text(flags.csv, query_csv(result, subject.class_names))
    if flags.html:
        options = PageOptions(
            title=_title(subject),
            class_names=subject.class_names,
            image_names=subject.image_names,
            load_image=subject.load_image,
        )
        write_html(flags.html, report, part.ranking, options)
    if flags.sheet:
        _write_sheet(flags.sheet, subject, part)
    if flags.curves:
        recall = {name: one.result.recall for name, one in measured.items()}
        write_curves(flags.curves, recall, _training_curves(flags.checkpoint))
    if flags.checkpoint and part.no_match is not None:
        # A search that skips these steps has other scores, and must not use the threshold.
        path = write_no_match(flags.checkpoint, {**part.no_match, "post_processing": list(subject.steps)})
        print(f"\nwritten: {path}")
    for flag in ("json", "csv", "html", "sheet", "curves", "save_embeddings"):
        if getattr(flags, flag):
            print(f"written: {getattr(flags, flag)}")


def _print_no_match(no_match: Mapping[str, Any]) -> None:
    calibration = no_match["calibration"]
    right = "nothing is answered" if no_match["precision"] is None else f"{100 * no_match['precision']:.1f}% right"
    print(
        f"\nno match below {no_match['threshold']:.4f}, calibrated on {calibration['num_queries']:,} validation "
        f"queries (false accepts {100 * calibration['false_accept_rate']:.2f}%)\n"
        f"here: answers {right}, {100 * no_match['recall']:.1f}% of the queries answered rightly, "
        f"false accepts {100 * no_match['false_accept_rate']:.2f}%"
    )


def _write_sheet(path: str, subject: Subject, part: Measured) -> None:
    if subject.load_image is None:
        raise InputError("--sheet needs pictures: it works with --checkpoint or --model, not with --embeddings")
    result = part.result
    order = np.argsort(result.per_query["map@r"], kind="stable")  # from the worst query to the best, evenly
    rows = order[np.unique(np.linspace(0, len(order) - 1, SHEET_ROWS).astype(int))]
    neighbors = part.ranking.neighbors.first(SHEET_COLUMNS)
    names = subject.class_names or []
    write_contact_sheet(
        path, rows.tolist(), result.query_ids, result.query_labels, neighbors, subject.load_image, names
    )


def _training_curves(checkpoint: str | None) -> dict[str, list[tuple[float, float]]] | None:
    path = Path(checkpoint or "") / METRICS
    if not checkpoint or not path.is_file():
        return None
    return {"loss": [(record["step"], record["loss"]) for record in read_metrics(path) if "loss" in record]}


def _title(subject: Subject) -> str:
    dataset = subject.facts.get("dataset")
    return f"{subject.name} on {dataset}" if dataset else subject.name
