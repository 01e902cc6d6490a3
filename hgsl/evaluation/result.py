"""The scores of a retrieval task."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from hgsl.common.tables import columns_of, count_of, format_table, frame, html_table
from hgsl.evaluation.knn.vectors import Ints
from hgsl.evaluation.metrics import Floats


@dataclass(frozen=True, repr=False)
class RetrievalResult:
    """Scores of a retrieval task in [0, 1], per query and as means; its ``repr`` is a table.

    Attributes:
        ks: The K of the scores at K.
        per_query: Key of a report (``recall@1``, ``map@r``, ...) -> (num_queries,) float64.
        query_ids: (num_queries,) ids of the queries with at least one match in the gallery.
        query_labels: (num_queries,) their labels.
        class_names: Label -> name, where labels were given as text; else None.
        num_gallery: Images searched.
        num_skipped: Queries left out since the gallery holds no other image of their label.
        index: ``Flat`` for exact search, else a FAISS factory string.
        index_overlap: For another index, the mean share of the exact max(ks) nearest that it finds, on a sample of
            queries; None for exact search.
        clustering: ``nmi`` and ``ami``, if requested.
    """

    ks: tuple[int, ...]
    per_query: dict[str, Floats]
    query_ids: Ints
    query_labels: Ints
    num_gallery: int
    num_skipped: int
    index: str
    index_overlap: float | None
    clustering: dict[str, float]
    class_names: tuple[str, ...] | None = None

    @property
    def num_queries(self) -> int:
        """Number of queries with a match."""
        return len(self.query_ids)

    @property
    def recall(self) -> dict[int, float]:
        """K -> Recall@K."""
        return self._at_each_k("recall")

    @property
    def precision(self) -> dict[int, float]:
        """K -> Precision@K."""
        return self._at_each_k("precision")

    @property
    def map_at_k(self) -> dict[int, float]:
        """K -> mAP@K as the published HGSL code defines it."""
        return self._at_each_k("map")

    @property
    def r_precision(self) -> float:
        """R-Precision."""
        return float(self.per_query["r_precision"].mean())

    @property
    def map_at_r(self) -> float:
        """MAP@R."""
        return float(self.per_query["map@r"].mean())

    @property
    def mrr(self) -> float:
        """The mean reciprocal rank of the first hit among the max(ks) nearest."""
        return float(self.per_query[f"mrr@{max(self.ks)}"].mean())

    def micro(self) -> dict[str, float]:
        """Returns every score as its mean over queries."""
        return {key: float(values.mean()) for key, values in self.per_query.items()}

    def macro(self) -> dict[str, float]:
        """Returns every score as the mean over classes of the mean over a class's queries."""
        _, scores = self.per_class()
        return {key: float(values.mean()) for key, values in scores.items()}

    def per_class(self) -> tuple[dict[int, int], dict[str, Floats]]:
        """Returns label -> number of queries, by ascending label, and key -> (classes,) mean scores in that order."""
        labels, codes, counts = np.unique(self.query_labels, return_inverse=True, return_counts=True)
        scores = {key: np.bincount(codes, values) / counts for key, values in self.per_query.items()}
        return dict(zip(labels.tolist(), counts.tolist(), strict=True)), scores

    def to_dict(self) -> dict[str, Any]:
        """Returns the scores (means over queries) and counts under the keys of a JSON report."""
        return {
            **self.micro(),
            **self.clustering,
            "num_queries": self.num_queries,
            "num_gallery": self.num_gallery,
            "num_skipped": self.num_skipped,
            "index": self.index,
            **({} if self.index_overlap is None else {"index_overlap": self.index_overlap}),
        }

    def to_frame(self) -> Any:
        """Returns a pandas DataFrame with one row per query, indexed by its id: its label and every score.

        Raises:
            InputError: pandas is not installed.
        """
        labels = self.query_labels if self.class_names is None else np.asarray(self.class_names)[self.query_labels]
        return frame({"id": self.query_ids, "label": labels, **self.per_query}, index="id")

    def __repr__(self) -> str:
        rows = {"mean over queries": self.micro(), "mean over classes": self.macro()}
        return f"{self._counts()}, in percent\n{format_table(rows, columns_of(self.ks))}"

    def _repr_html_(self) -> str:
        rows = {"mean over queries": self.micro(), "mean over classes": self.macro()}
        return f"<p>{self._counts()}, in percent</p>{html_table(rows, columns_of(self.ks))}"

    def _counts(self) -> str:
        skipped = f" ({self.num_skipped:,} without a match are skipped)" if self.num_skipped else ""
        index = "" if self.index_overlap is None else f", index {self.index}"
        queries, images = count_of(self.num_queries, "query", "queries"), count_of(self.num_gallery, "gallery image")
        return f"{queries}{skipped}, {images}{index}"

    def _at_each_k(self, name: str) -> dict[int, float]:
        return {k: float(self.per_query[f"{name}@{k}"].mean()) for k in self.ks}
