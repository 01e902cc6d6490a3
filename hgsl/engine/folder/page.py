"""Report page and curves of a finished run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hgsl.common.tables import recall_of
from hgsl.engine.evaluation import Evaluation
from hgsl.engine.folder.logging import validation_curves
from hgsl.engine.folder.run_folder import CURVES, PAGE
from hgsl.evaluation.show.html import PageOptions, write_html
from hgsl.evaluation.show.plots import write_curves

THUMBNAILS, MAP_IMAGES = 1000, 1000  # so that the page takes seconds for any number of images
SMOOTHING = 0.05  # weight of a step in the running mean of the loss


def write_page(
    folder: Path,
    report: Mapping[str, Any],
    records: Sequence[Mapping[str, float]],
    evaluation: Evaluation,
) -> None:
    """Writes ``report.html`` and ``curves.png``.

    Args:
        folder: The run folder, whose name is the title.
        report: The report, with ``before`` and ``after``.
        records: Records of ``metrics.jsonl``.
        evaluation: Evaluation on the test classes, after training.
    """
    recalls = {f"{moment} training": recall_of(report[moment]) for moment in ("before", "after") if report[moment]}
    loss = {"loss (running mean)": _smoothed(records)} if records else None
    write_curves(folder / CURVES, recalls, loss, validation_curves(records))
    data = evaluation.data
    options = PageOptions(
        title=evaluation.title(folder.name),
        class_names=data.class_names,
        image_names=data.image_names,
        load_image=data.load_image,
        max_pictures=THUMBNAILS,
        map_images=MAP_IMAGES,
    )
    content = {**next(iter(evaluation.reports.values())), "notes": report["after"]["notes"]}
    write_html(folder / PAGE, content, evaluation.ranking, options)


def _smoothed(records: Sequence[Mapping[str, float]]) -> list[tuple[float, float]]:
    """(step, running mean of the loss), bias-corrected for the first steps."""
    curve, total, weights = [], 0.0, 0.0
    for record in records:
        total = (1 - SMOOTHING) * total + SMOOTHING * record["loss"]
        weights = (1 - SMOOTHING) * weights + SMOOTHING
        curve.append((record["step"], total / weights))
    return curve
