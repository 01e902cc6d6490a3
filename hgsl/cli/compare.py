"""``hgsl-compare``: reports side by side, with paired differences and their intervals."""

import argparse
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from hgsl.cli._help import HelpFormatter
from hgsl.cli._main import run
from hgsl.common.errors import InputError
from hgsl.common.eval_checks import check_output_files
from hgsl.common.files import write_json, write_text
from hgsl.common.paper_tables import check_table_path, format_for
from hgsl.common.tables import format_cells, recall_of

if TYPE_CHECKING:
    from hgsl.engine.comparison import Contender

DESCRIPTION = """Print reports of one split side by side, and the difference of each from the first: the mean
over the same queries with its 95% interval, from resampled classes. A report is a file of hgsl-eval
--json, the folder of a run (its scores after training), or the folder of hgsl-train --seeds: then a row holds mean
and standard deviation of the seeds, and the interval also covers other seeds."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 after bad input."""
    parser = argparse.ArgumentParser(description=DESCRIPTION, formatter_class=HelpFormatter)
    parser.add_argument(
        "reports", nargs="+", metavar="REPORT", help="Two or more; the others are compared with the first."
    )
    parser.add_argument("--bootstrap", type=int, default=2000, metavar="N", help="Bootstrap samples.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of the bootstrap.")
    parser.add_argument("--json", metavar="FILE", help="Also write scores and differences to this file.")
    parser.add_argument("--curves", metavar="FILE", help="Also draw Recall@K of all (.png, .pdf, .svg).")
    parser.add_argument("--table", metavar="FILE", help="Also write the scores as Markdown (.md) or LaTeX (.tex).")
    parser.add_argument("--plot", metavar="FILE", help="Also draw MAP@R and Recall@1 of all, a point per seed.")
    return run(lambda: _compare(parser.parse_args(arguments)), ends_process=arguments is None)


def _compare(flags: argparse.Namespace) -> None:
    if len(flags.reports) < 2:
        raise InputError(f"one report, {flags.reports[0]}: give at least two to compare")
    if flags.table:
        check_table_path("--table", flags.table)
    outputs = {name: path for name in ("json", "curves", "table", "plot") if (path := getattr(flags, name))}
    check_output_files(outputs)
    if flags.bootstrap < 2:
        raise InputError(f"--bootstrap needs at least 2 samples, found {flags.bootstrap}")
    if flags.seed < 0:
        raise InputError(f"--seed must be at least 0, found {flags.seed}")

    from hgsl.engine.comparison import differences, read_contenders, score_columns

    contenders = read_contenders(flags.reports)
    first, *others = contenders
    columns = score_columns(contenders)
    intervals = {
        other.name: differences(first, other, list(columns), samples=flags.bootstrap, seed=flags.seed)
        for other in others
    }
    if flags.json:
        content = {
            "split_hash": first.reports[0]["split_hash"],
            "seeds": {contender.name: len(contender.reports) for contender in contenders},
            "scores": {contender.name: _only(contender.mean, columns) for contender in contenders},
            "std": {contender.name: _only(contender.spread, columns) for contender in contenders},
            "first": first.name,
            "differences": {name: values for name, values in intervals.items() if values},
        }
        write_json(flags.json, content)
    if flags.curves:
        from hgsl.evaluation.show.plots import write_curves

        write_curves(flags.curves, {contender.name: recall_of(contender.mean) for contender in contenders})
    if flags.table:
        write_text(flags.table, _table(flags.table, contenders, columns))
    if flags.plot:
        from hgsl.evaluation.show.plots import write_scores

        shown = {key: heading for key, heading in columns.items() if key in ("map@r", "recall@1")}
        write_scores(flags.plot, {_row(contender): contender.scores for contender in contenders}, shown)
    _print(contenders, columns, intervals)
    for path in outputs.values():
        print(f"written: {path}")


def _table(path: str, contenders: Sequence["Contender"], columns: Mapping[str, str]) -> str:
    """The scores as a table for papers, the best mean of each column in bold."""
    rows = {_row(contender): [_score(contender, key) for key in columns] for contender in contenders}
    best = []
    for key in columns:
        means = {_row(contender): contender.mean[key] for contender in contenders if key in contender.mean}
        best.append(max(means, key=lambda name: means[name]) if means else None)
    return format_for(path, rows, list(columns.values()), best)


def _print(
    contenders: Sequence["Contender"],
    columns: Mapping[str, str],
    intervals: Mapping[str, Mapping[str, Sequence[float]]],
) -> None:
    first = contenders[0]
    for contender in contenders:
        for trained_on in filter(None, (report.get("trained_on") for report in contender.reports)):
            print(
                f"note: {contender.name} was trained on {trained_on['classes']:,} of the searched classes and "
                f"{trained_on['images']:,} of the images, so its scores are not those of unseen classes"
            )
    of_all = set.intersection(*(set(contender.remarks) for contender in contenders))
    for contender in contenders:
        if remarks := [remark for remark in contender.remarks if remark not in of_all]:
            print(f"note: {contender.name}: {'; '.join(remarks)}")
    head = first.reports[0]
    print(f"{head['num_queries']:,} queries, {head['num_gallery']:,} images, split {head['split_hash']}, in percent")
    rows = {_row(contender): [_score(contender, key) for key in columns] for contender in contenders}
    print(format_cells(rows, list(columns.values())))
    paired = {_row(other): intervals[other.name] for other in contenders[1:] if intervals[other.name]}
    if paired:
        print(f"\nminus {first.name}, points with 95% interval from {_resampled(contenders)} (* if it excludes 0)")
        cells = {
            name: [_difference(values[key]) if key in values else "-" for key in columns]
            for name, values in paired.items()
        }
        print(format_cells(cells, list(columns.values())))
    missing = [name for name, values in intervals.items() if not values]
    if missing:
        print(
            f"\n{', '.join(missing)}: no scores of single queries in both reports, so no paired difference; to get them"
        )
        print("  hgsl-eval --checkpoint RUN --json REPORT")
    print()


def _row(contender: "Contender") -> str:
    count = len(contender.reports)
    return contender.name if count == 1 else f"{contender.name} ({count} seeds)"


def _score(contender: "Contender", key: str) -> str:
    if key not in contender.mean:
        return "-"
    spread = f" +-{100 * contender.spread[key]:.2f}" if contender.spread else ""
    return f"{100 * contender.mean[key]:.2f}{spread}"


def _resampled(contenders: Sequence["Contender"]) -> str:
    """The source of variation that the intervals cover, for their caption."""
    units = "resampled classes" if contenders[0].labels is not None else "resampled queries, as classes are not known"
    seeds = [len(contender.reports) for contender in contenders]
    return f"{units} and the spread of seeds" if max(seeds) > 1 else f"{units}, of these models: other seeds differ too"


def _difference(difference: Sequence[float]) -> str:
    mean, low, high = (100 * value for value in difference)
    mark = "*" if low > 0 or high < 0 else " "
    return f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]{mark}"


def _only(scores: Mapping[str, float], keys: Mapping[str, str]) -> dict[str, float]:
    return {key: scores[key] for key in keys if key in scores}
