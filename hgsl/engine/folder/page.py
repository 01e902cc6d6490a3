"""A finished run to look at: one HTML page, and curves."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hgsl.data import RetrievalDataset
from hgsl.engine.folder.run_folder import CURVES, PAGE
from hgsl.evaluation import Ranking
from hgsl.evaluation.show.html import PageOptions, write_html
from hgsl.evaluation.show.plots import write_curves
from hgsl.evaluation.show.report import build_report

PICTURES, MAP_IMAGES, PICTURE_SIDE = 1000, 1000, 224  # some seconds, however many images there are
SMOOTH = 0.05  # weight of a step in the drawn loss


def write_page(
    folder: Path,
    report: Mapping[str, Any],
    records: Sequence[Mapping[str, float]],
    ranking: Ranking,
    images: RetrievalDataset,
) -> None:
    """Writes ``report.html`` and ``curves.png``.

    Args:
        folder: The run folder, whose name is the title.
        report: With ``before`` and ``after``.
        records: Of ``metrics.jsonl``.
        ranking: Of the searched classes, after training.
        images: Of the searched classes.
    """
    recalls = {
        f"{moment} training": {k: report[moment][f"recall@{k}"] for k in ranking.result.ks}
        for moment in ("before", "after")
        if report[moment]
    }
    write_curves(folder / CURVES, recalls, {"loss (running mean)": _smoothed(records)} if records else None)
    manifest = images.manifest
    row = {image: place for place, image in enumerate(images.ids.tolist())}
    content = build_report(ranking.result, **{key: report["after"][key] for key in ("protocol", "split_hash", "notes")})
    options = PageOptions(
        title=f"{folder.name} on {manifest.name}",
        class_names=images.class_names,
        image_names=dict(zip(images.ids.tolist(), manifest.paths, strict=True)),
        load_image=lambda image: images.image(row[image], PICTURE_SIDE),
        max_pictures=PICTURES,
        map_images=MAP_IMAGES,
    )
    write_html(folder / PAGE, {**content, "dataset": manifest.name}, ranking, options)


def _smoothed(records: Sequence[Mapping[str, float]]) -> list[tuple[float, float]]:
    """(step, running mean of the loss)."""
    curve, mean = [], records[0]["loss"]
    for record in records:
        mean += SMOOTH * (record["loss"] - mean)
        curve.append((record["step"], mean))
    return curve
