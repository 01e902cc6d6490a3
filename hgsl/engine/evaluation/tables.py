"""Text tables of an evaluation."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hgsl.common.tables import columns_of, count_of, format_table
from hgsl.evaluation.show.report import category_rows, class_rows

if TYPE_CHECKING:
    from hgsl.engine.evaluation.evaluation import GalleryEvaluation


def text(
    galleries: Mapping[str, "GalleryEvaluation"],
    reports: Mapping[str, Mapping[str, Any]],
    class_names: Sequence[str] | None = None,
    per_class: bool = False,
    categories: Mapping[int, str] | None = None,
) -> str:
    """Returns the tables of scores, with counts, notes, intervals and threshold.

    Args:
        galleries: Name -> its ranking.
        reports: Name -> its report.
        class_names: Label -> name.
        per_class: Whether to add the scores of each class, and of each category if there are several.
        categories: Id of an image -> its category.
    """
    parts = [_head(name if len(galleries) > 1 else "", part, reports[name]) for name, part in galleries.items()]
    columns = columns_of(next(iter(galleries.values())).ranking.result.ks)
    rows: dict[str, Any] = dict(reports)
    if len(galleries) == 1:
        rows["mean over classes"] = next(iter(reports.values()))["macro"]
    parts[-1] += f"\n{format_table(rows, columns)}"
    for name, report in reports.items():
        parts.extend(_details(name, report, columns))
    if per_class:
        for part in galleries.values():
            grouped = category_rows(part.ranking.result, categories or {})
            if len(grouped) > 1:
                parts.append(format_table({f"{row['category']} ({row['queries']})": row for row in grouped}, columns))
            classes = class_rows(part.ranking.result, class_names)
            parts.append(format_table({f"{row['class']} ({row['queries']})": row for row in classes}, columns))
    return "\n\n".join(parts)


def _head(name: str, part: "GalleryEvaluation", report: Mapping[str, Any]) -> str:
    result = part.ranking.result
    gallery = f" ({name})" if name else ""
    queries, images = count_of(result.num_queries, "query", "queries"), count_of(result.num_gallery, "image")
    lines = [f"{queries}, {images}{gallery}, in percent"]
    if result.num_skipped:
        lines.append(f"{result.num_skipped:,} queries have no other image of their class and are skipped")
    if result.index_overlap is not None:
        share = 100 * result.index_overlap
        lines.append(f"index {result.index} finds {share:.2f}% of the exact {max(result.ks)} nearest")
    lines += [f"note: {note}" for note in [*report.get("notes", ()), *report["post_processing"]]]
    return "\n".join(lines)


def _details(name: str, report: Mapping[str, Any], columns: Mapping[str, str]) -> Iterator[str]:
    if "intervals" in report:
        spans = report["intervals"]
        ends = {
            f"{units}, {end}": {key: span[i] for key, span in spans[f"over_{units}"].items()}
            for units in ("queries", "classes")
            for i, end in enumerate(("low", "high"))
        }
        yield (
            f"{100 * spans['level']:.0f}% intervals of {name}, {spans['samples']:,} samples\n"
            f"{format_table(ends, columns)}"
        )
    if report.get("nmi") is not None:
        yield f"k-means of {name}: NMI {100 * report['nmi']:.2f}, AMI {100 * report['ami']:.2f}"
    if "no_match" in report:
        yield _no_match(report["no_match"])


def _no_match(no_match: Mapping[str, Any]) -> str:
    calibration = no_match["calibration"]
    low, high = calibration["interval"]
    precision = "none accepted" if no_match["precision"] is None else f"precision {100 * no_match['precision']:.1f} %"
    return (
        f"no match below {no_match['threshold']:.4f}, calibrated on {calibration['num_queries']:,} validation images "
        f"of {calibration['num_classes']:,} classes, searched in this gallery\n"
        f"false accepts: {100 * calibration['false_accept_rate']:.2f} % of them, on other classes "
        f"{100 * calibration['expected_rate']:.2f} % expected (95% interval {100 * low:.2f} to {100 * high:.2f} %)\n"
        f"the queries here: {precision}, recall {100 * no_match['recall']:.1f} %, "
        f"false accepts {100 * no_match['false_accept_rate']:.2f} %"
    )
