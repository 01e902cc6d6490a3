"""Files of an evaluation: checked before the search, written as far as possible."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hgsl.common.errors import InputError
from hgsl.common.eval_checks import check_output_files
from hgsl.common.extras import require
from hgsl.common.files import write_json, write_text
from hgsl.common.no_match import FILE_NAME as NO_MATCH
from hgsl.common.no_match import write_no_match
from hgsl.engine.evaluation.evaluation import Evaluation, GalleryEvaluation
from hgsl.engine.folder.logging import read_metrics, validation_curves
from hgsl.engine.folder.run_folder import METRICS
from hgsl.evaluation.show.html import PageOptions, write_html
from hgsl.evaluation.show.inspection import MAP_IMAGES
from hgsl.evaluation.show.pictures import write_contact_sheet
from hgsl.evaluation.show.plots import write_curves
from hgsl.evaluation.show.report import query_csv

Curves = dict[str, list[tuple[float, float]]]

SHEET_ROWS, SHEET_COLUMNS = 8, 6


@dataclass(frozen=True)
class EvalOutputs:
    """Paths of the requested files.

    With several galleries each of ``csv``, ``html`` and ``sheet`` is one file per gallery: ``page.html`` becomes
    ``page.GALLERY.html``.

    Attributes:
        json: The report, with the scores of each query.
        csv: A table of the scores of each query.
        html: The report page.
        map_images: How many images its map shows at most.
        heat: Whether the page also shows why the images of suspicious pairs match.
        sheet: A contact sheet of queries with their neighbors.
        curves: A figure of Recall@K, and of the loss of the run's training.
        per_class: Whether the report has the scores of each class.
        run: Folder of the run that is evaluated: a calibrated threshold is kept there.
    """

    json: str | None = None
    csv: str | None = None
    html: str | None = None
    map_images: int = MAP_IMAGES
    heat: bool = False
    sheet: str | None = None
    curves: str | None = None
    per_class: bool = False
    run: str | None = None

    @property
    def paths(self) -> dict[str, str]:
        """The requested files, by the name of their flag."""
        return {name: path for name in ("json", "csv", "html", "sheet", "curves") if (path := getattr(self, name))}

    def check(self, *, has_images: bool) -> None:
        """Checks before any work that every file can be written.

        Args:
            has_images: Whether images are available, not only embeddings.

        Raises:
            InputError: A path is a folder, or its suffix names no format; a sheet needs images.
            OSError: A path cannot be written.
        """
        if self.sheet and not has_images:
            raise InputError("--sheet needs images: it works with --checkpoint or --model, not with --embeddings")
        check_output_files(self.paths)
        if self.map_images < 1:
            raise InputError(f"--map-images must be at least 1, found {self.map_images}")
        if self.map_images > MAP_IMAGES:
            require("map", f"a map of more than {MAP_IMAGES:,} images")

    def write(self, evaluation: Evaluation) -> list[str]:
        """Writes every file that can be written, and returns their paths.

        Raises:
            InputError: Some cannot be written; all others are.
        """
        written, failures = [], []
        for path, write in self._writers(evaluation):
            try:
                write()
            except (OSError, InputError) as error:
                failures.append(f"{path} is not written ({error})")
            else:
                written.append(path)
        if failures:
            rest = f"; written: {', '.join(written)}" if written else ""
            raise InputError("; ".join(failures) + rest)
        return written

    def _writers(self, evaluation: Evaluation) -> Iterator[tuple[str, Any]]:
        """Path and writer of each file, the most important first."""
        data, galleries = evaluation.data, evaluation.galleries
        if self.json:
            path = self.json
            report = evaluation.to_dict(per_class=self.per_class, per_query=True)
            yield path, lambda: write_json(path, report)
        for name, part in galleries.items():
            if self.run and part.no_match is not None and len(galleries) == 1:
                # The threshold does not apply to scores without these steps.
                content, folder = {**part.no_match, "post_processing": list(data.steps)}, self.run
                yield str(Path(folder) / NO_MATCH), lambda c=content, f=folder: write_no_match(f, c)
            if self.csv:
                path = _of_gallery(self.csv, name, galleries)
                yield path, lambda p=path, r=part.ranking.result: write_text(p, query_csv(r, data.class_names))
            if self.html:
                path = _of_gallery(self.html, name, galleries)
                yield path, lambda p=path, n=name: self._write_page(p, evaluation, n)
            if self.sheet:
                path = _of_gallery(self.sheet, name, galleries)
                yield path, lambda p=path, g=part: _write_sheet(p, evaluation, g)
        if self.curves:
            curves = self.curves
            recall = {name: part.ranking.result.recall for name, part in galleries.items()}
            yield curves, lambda: write_curves(curves, recall, *_training_curves(self.run))

    def _write_page(self, path: str, evaluation: Evaluation, name: str) -> None:
        data = evaluation.data
        options = PageOptions(
            title=evaluation.title(name),
            class_names=data.class_names,
            image_names=data.image_names,
            load_image=data.load_image,
            map_images=self.map_images,
            explain=data.explain if self.heat else None,
            progress=evaluation.options.progress,
        )
        write_html(path, evaluation.reports[name], evaluation.galleries[name].ranking, options)


def _of_gallery(path: str, name: str, galleries: Mapping[str, Any]) -> str:
    """The path itself, or with several galleries one that names the gallery."""
    if len(galleries) == 1:
        return path
    stems = [Path(gallery).stem for gallery in galleries]
    number = list(galleries).index(name)
    unique = stems[number] if stems.count(stems[number]) == 1 else f"{number + 1}"
    return str(Path(path).with_suffix(f".{unique}{Path(path).suffix}"))


def _write_sheet(path: str, evaluation: Evaluation, part: GalleryEvaluation) -> None:
    data, result = evaluation.data, part.ranking.result
    assert data.load_image is not None  # see EvalOutputs.check
    order = np.argsort(result.per_query["map@r"], kind="stable")  # from the worst query to the best, evenly
    rows = order[np.unique(np.linspace(0, len(order) - 1, SHEET_ROWS).astype(int))]
    neighbors = part.ranking.neighbors.first(SHEET_COLUMNS)
    queries = result.query_ids, result.query_labels
    write_contact_sheet(path, rows.tolist(), *queries, neighbors, data.load_image, data.class_names or [])


def _training_curves(run: str | None) -> tuple[Curves | None, Curves | None]:
    """The loss of a run and its scores on validation images; None where there are none."""
    path = Path(run or "") / METRICS
    if not run or not path.is_file():
        return None, None
    records = read_metrics(path)
    loss = [(record["step"], record["loss"]) for record in records if "loss" in record]
    return {"loss": loss}, validation_curves(records)
