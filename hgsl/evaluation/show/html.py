"""The report page: one HTML file that needs no network and no other file."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup
from PIL import Image

from hgsl.common.files import write_text
from hgsl.common.progress import progress_bar
from hgsl.common.tables import columns_of
from hgsl.evaluation.knn.vectors import Ints
from hgsl.evaluation.neighbors import Neighbors
from hgsl.evaluation.ranking import Ranking
from hgsl.evaluation.result import RetrievalResult
from hgsl.evaluation.show.inspection import MAP_IMAGES, confusions, embedding_map, suspicious_pairs
from hgsl.evaluation.show.pictures import LoadImage, embed_pictures, picture
from hgsl.evaluation.show.report import class_rows
from hgsl.evaluation.task import RetrievalTask

TEMPLATES = Path(__file__).parent / "templates"
NEIGHBORS = 8
METRIC_NAMES = {"cosine": "cosine similarity", "inner_product": "inner product", "l2": "negative squared distance"}
MAX_PICTURES = 4000  # about 10 MB; the worst queries and their neighbors have priority
MAX_LARGE = 160  # pictures of up to 320 pixels a side, about 2 MB; suspicious pairs have priority
SCRIPTS = ("base", "marks", "pair_viewer", "queries", "viewer", "classes", "pairs", "map", "report")


@dataclass(frozen=True)
class PageOptions:
    """Options of the page.

    Attributes:
        title: Its heading.
        class_names: Label -> name; the labels themselves by default.
        image_names: Id -> name of the image, such as its path; its id by default.
        load_image: Id -> the image; without it the page shows names only.
        explain: Two ids -> both images with the parts that make their similarity; None shows no such pictures.
        max_pictures: How many different images are embedded at most.
        map_images: How many images the map shows at most.
        progress: Whether to show a progress bar on stderr, if that is a terminal.
    """

    title: str = "Retrieval report"
    class_names: Sequence[str] | None = None
    image_names: Mapping[int, str] | None = None
    load_image: LoadImage | None = None
    explain: Callable[[int, int], tuple[Image.Image, Image.Image]] | None = None
    max_pictures: int = MAX_PICTURES
    map_images: int = MAP_IMAGES
    progress: bool = True


def write_html(
    path: str | os.PathLike[str], report: Mapping[str, Any], ranking: Ranking, options: PageOptions | None = None
) -> None:
    """Writes the page.

    Args:
        path: The file to write.
        report: From ``build_report``; its intervals, notes and no-match threshold are shown if it has them.
        ranking: Scores and neighbors; the page shows up to 8 neighbors per query.
        options: Title, names and pictures.
    """
    write_text(path, render_html(report, ranking, options or PageOptions()))


def render_html(report: Mapping[str, Any], ranking: Ranking, options: PageOptions) -> str:
    """Returns the page as text; the arguments are those of ``write_html``."""
    neighbors = ranking.neighbors.first(NEIGHBORS)
    return render_page(
        "report.html",
        SCRIPTS,
        _data(report, ranking, neighbors, options),
        title=options.title,
        report=report,
        cards=_cards(report, ranking.result),
        neighbors=neighbors.ids.shape[1],
    )


def render_page(template: str, scripts: Sequence[str], data: Mapping[str, Any], **values: Any) -> str:
    """Returns a page with its style, its data and its scripts, which share one scope, in it.

    Args:
        template: File name in ``templates``; it shows ``values``.
        scripts: Names of scripts in ``templates``, in their order.
        data: What the scripts show.
    """
    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    parts = [(TEMPLATES / f"{name}.js").read_text(encoding="utf-8") for name in scripts]
    return environment.get_template(template).render(
        style=Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")),
        script=Markup("\n".join(['"use strict";', "(() => {", *parts, "})();"])),
        data=script_json(data),
        **values,
    )


def script_json(value: Any) -> Markup:
    """JSON that is safe inside a script element: it cannot end the element or start a comment."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _cards(report: Mapping[str, Any], result: RetrievalResult) -> list[dict[str, str]]:
    """The headline numbers, in percent, with their intervals."""
    intervals = report.get("intervals", {}).get("over_queries", {})
    cards = []
    for key, heading in _columns(result).items():
        low, high = intervals.get(key, (None, None))
        interval = "" if low is None else f"{100 * low:.1f} to {100 * high:.1f}"
        cards.append({"heading": heading, "value": f"{100 * report[key]:.2f}", "interval": interval})
    return cards


def _columns(result: RetrievalResult) -> dict[str, str]:
    """The scores that are shown, the most informative one first."""
    return {"map@r": "MAP@R", **columns_of(result.ks)}


def _data(report: Mapping[str, Any], ranking: Ranking, neighbors: Neighbors, options: PageOptions) -> dict[str, Any]:
    """Everything the script shows; images are numbered, and each is stored once."""
    result, task = ranking.result, ranking.task
    worst = np.lexsort((result.query_ids, -neighbors.scores[:, 0], result.per_query["map@r"]))
    pairs = suspicious_pairs(result.query_ids, neighbors)
    ids, labels = _images(result, neighbors, worst, pairs)
    number = {image: index for index, image in enumerate(ids.tolist())}
    mapped, points = embedding_map(task, limit=options.map_images)
    names = options.image_names or {}
    queries = [
        {
            "image": number[int(result.query_ids[row])],
            "map": round(float(result.per_query["map@r"][row]), 4),
            "neighbors": [
                [number[int(image)], round(float(score), 4)]
                for image, score, present in zip(
                    neighbors.ids[row], neighbors.scores[row], neighbors.present[row], strict=True
                )
                if present
            ],
        }
        for row in worst
    ]
    rank = np.empty(len(worst), dtype=np.int64)
    rank[worst] = np.arange(len(worst))
    pictures, large = _pictures(ids, options)
    return {
        "key": f"{options.title} {report['split_hash']}",
        "metric": METRIC_NAMES[task.metric],
        "classes": _class_names(task, options),
        "images": [
            [str(image), label, names.get(image, str(image))] for image, label in zip(ids.tolist(), labels, strict=True)
        ],
        "pictures": pictures,
        "large": large,
        "queries": queries,
        "columns": _columns(result),
        "perClass": [
            {**row, "label": label} for row, label in zip(class_rows(result), result.per_class()[0], strict=True)
        ],
        "heat": _heat_pictures(pairs, options),
        "confusions": confusions(result.query_labels, neighbors)[:200],
        "pairs": [[number[one], number[other], round(score, 4)] for one, other, score in pairs],
        "map": [[int(rank[row]), *np.round(point, 4).tolist()] for row, point in zip(mapped, points, strict=True)],
    }


def _images(
    result: RetrievalResult, neighbors: Neighbors, worst: Ints, pairs: list[tuple[int, int, float]]
) -> tuple[Ints, list[int]]:
    """Ids and labels of all images on the page, in the order in which they get thumbnails."""
    present = neighbors.present
    label_of = dict(zip(neighbors.ids[present].tolist(), neighbors.labels[present].tolist(), strict=True))
    label_of.update(zip(result.query_ids.tolist(), result.query_labels.tolist(), strict=True))
    ordered = [image for one, other, _ in pairs for image in (one, other)]
    for row in worst:
        ordered += [int(result.query_ids[row]), *neighbors.ids[row][present[row]].tolist()]
    unique = list(dict.fromkeys(ordered))
    return np.array(unique, dtype=np.int64), [label_of[image] for image in unique]


def _pictures(ids: Ints, options: PageOptions) -> tuple[list[str], list[str]]:
    """Thumbnails of the first ``max_pictures`` images, and larger pictures of the first ``MAX_LARGE``."""
    if options.load_image is None:
        return [], []
    return embed_pictures(ids.tolist(), options.load_image, options.max_pictures, MAX_LARGE, options.progress)


def _heat_pictures(pairs: list[tuple[int, int, float]], options: PageOptions) -> list[list[str]]:
    """Both pictures of the heat maps of each pair."""
    if options.explain is None:
        return []
    bar = progress_bar(pairs, shown=options.progress, desc="heat maps", unit="pair")
    return [[picture(shown) for shown in options.explain(one, other)] for one, other, _ in bar]


def _class_names(task: RetrievalTask, options: PageOptions) -> dict[int, str]:
    labels = np.union1d(task.query_labels, task.gallery_labels).tolist()
    names = options.class_names or task.class_names
    return {label: str(label) if names is None else names[label] for label in labels}
