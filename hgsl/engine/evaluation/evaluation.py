"""Results of an evaluation: rankings, report and table of every gallery."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from html import escape
from typing import Any

from hgsl.common.errors import InputError
from hgsl.engine.evaluation import tables
from hgsl.engine.evaluation.data import EvalData
from hgsl.engine.evaluation.options import EvalOptions
from hgsl.engine.folder.environment import versions
from hgsl.evaluation import Ranking, RetrievalResult
from hgsl.evaluation.show.report import build_report, category_rows
from hgsl.evaluation.threshold import Calibration, measure


@dataclass(frozen=True)
class GalleryEvaluation:
    """The ranking of one gallery, the hash of what was searched, and the calibrated threshold if there is one."""

    ranking: Ranking
    split_hash: str
    calibration: Calibration | None = None

    @property
    def no_match(self) -> dict[str, Any] | None:
        """The threshold with its calibration and its scores on the queries; None without one."""
        if self.calibration is None:
            return None
        acceptance = measure(self.ranking.top_scores, self.calibration.threshold)
        metric = self.ranking.task.metric
        return {**acceptance.to_dict(), "metric": metric, "calibration": self.calibration.to_dict()}


@dataclass(frozen=True, repr=False)
class Evaluation:
    """Results of an evaluation; its ``repr`` is the table of scores.

    Attributes:
        data: The inputs; ``data.steps`` lists all steps before and after the search.
        options: The options.
        galleries: Name -> its ranking; one, unless there are separate galleries.
    """

    data: EvalData
    options: EvalOptions
    galleries: Mapping[str, GalleryEvaluation]

    @property
    def ranking(self) -> Ranking:
        """The ranking of the only gallery.

        Raises:
            InputError: There are several.
        """
        if len(self.galleries) > 1:
            raise InputError(f"{len(self.galleries)} galleries were searched: choose one of .galleries by its name")
        return next(iter(self.galleries.values())).ranking

    @property
    def result(self) -> RetrievalResult:
        """The scores of the only gallery."""
        return self.ranking.result

    @cached_property
    def reports(self) -> dict[str, dict[str, Any]]:
        """Name of a gallery -> its report, without scores of single classes and queries."""
        return {name: self._report(part) for name, part in self.galleries.items()}

    def title(self, name: str) -> str:
        """Returns the heading of a page: the name of a run or gallery, and that of the data set if it differs."""
        dataset = self.data.metadata.get("dataset", name)
        return name if dataset == name else f"{name} on {dataset}"

    def summary(self) -> dict[str, Any]:
        """Returns scores, counts and metadata of the only gallery, as in the report of a training."""
        return {**self.result.to_dict(), **self.data.metadata}

    def to_dict(self, *, per_class: bool = False, per_query: bool = False) -> dict[str, Any]:
        """Returns the report, or with several galleries ``{"galleries": {name: report}}``.

        Args:
            per_class: Whether to add the scores of each class.
            per_query: Whether to add the scores of each query, by which ``compare`` pairs two reports.
        """
        reports = {
            name: self._report(part, per_class=per_class, per_query=per_query) for name, part in self.galleries.items()
        }
        return next(iter(reports.values())) if len(reports) == 1 else {"galleries": reports}

    def to_frame(self) -> Any:
        """Returns the scores of every query of the only gallery; see ``RetrievalResult.to_frame``."""
        return self.result.to_frame()

    def text(self, *, per_class: bool = False) -> str:
        """Returns the tables that the command prints."""
        names = self.data.class_names if per_class else None
        return tables.text(self.galleries, self.reports, names, per_class, self.data.categories)

    def __repr__(self) -> str:
        return self.text()

    def _repr_html_(self) -> str:
        return f"<pre>{escape(self.text())}</pre>"

    def _report(self, part: GalleryEvaluation, *, per_class: bool = False, per_query: bool = False) -> dict[str, Any]:
        categories = category_rows(part.ranking.result, self.data.categories) if per_class else []
        metadata = {key: value for key, value in self.data.metadata.items() if key not in ("protocol", "split_hash")}
        return build_report(
            part.ranking.result,
            protocol=self.data.metadata["protocol"],
            split_hash=part.split_hash,
            class_names=self.data.class_names,
            bootstrap=self.options.bootstrap,
            per_class=per_class,
            per_query=per_query,
            post_processing=list(self.data.steps),
            metric=part.ranking.task.metric,
            **({"per_category": categories} if len(categories) > 1 else {}),
            **({} if part.no_match is None else {"no_match": part.no_match}),
            **metadata,
            versions=versions(),
        )
