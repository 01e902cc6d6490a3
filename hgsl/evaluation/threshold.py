"""When to answer "no match": a similarity below which the nearest image is not believed."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hgsl.common.errors import InputError
from hgsl.evaluation.knn.knn import k_nearest
from hgsl.evaluation.knn.order import pair_scores
from hgsl.evaluation.knn.vectors import Floats
from hgsl.evaluation.task import RetrievalTask


@dataclass(frozen=True)
class NoMatch:
    """A threshold and how it does on the images that it was measured on.

    Attributes:
        threshold: The nearest image is taken as a match if its score is at least this.
        false_accept_rate: Share of queries that would be accepted if their own class were not in the gallery.
        precision: Share of accepted queries whose nearest image is of their class; None if none is accepted.
        recall: Share of all queries (with a match in the gallery) that are accepted and right.
        num_queries: How many queries that was measured on.
    """

    threshold: float
    false_accept_rate: float
    precision: float | None
    recall: float
    num_queries: int

    def to_dict(self) -> dict[str, Any]:
        """Returns the attributes for a JSON report."""
        return asdict(self)


@dataclass(frozen=True)
class TopScores:
    """What decides acceptance, per query: the best score, whether it is a hit, and the best score of another class."""

    best: Floats
    is_hit: NDArray[np.bool_]
    best_other: Floats


def top_scores(task: RetrievalTask, *, max_memory: int = 1 << 30) -> TopScores:
    """Searches every query of the task with its match in the gallery, deep enough to meet another class."""
    task = task.subset(task.answerable)
    gallery = task.search_gallery(max_memory)
    count = len(task.queries)
    best, other = np.empty(count, dtype=np.float32), np.empty(count, dtype=np.float32)
    is_hit = np.empty(count, dtype=bool)
    for rows, positions in k_nearest(
        gallery, task.queries, task.relevant + 1, excluded=task.excluded, max_memory=max_memory
    ):
        hits = (task.gallery_labels[positions] == task.query_labels[rows, None]) & (positions >= 0)
        is_hit[rows] = hits[:, 0]
        best[rows] = pair_scores(task.gallery, positions[:, 0], task.queries, rows, task.metric)
        first = np.take_along_axis(positions, hits.argmin(axis=1, keepdims=True), 1)[:, 0]  # there are R hits at most
        other[rows] = pair_scores(task.gallery, first, task.queries, rows, task.metric)
    return TopScores(best, is_hit, other)


def calibrate(scores: TopScores, false_accept_rate: float) -> NoMatch:
    """Returns the lowest threshold that accepts at most this share of queries whose class is absent.

    A query whose class is absent finds what it now finds among other classes: its best score there is what a
    stranger's would be. So no image has to be held back.

    Args:
        scores: Of validation images.
        false_accept_rate: The wished rate, from 0 to below 1.

    Raises:
        InputError: The rate is out of range, or so low that this number of queries cannot tell it from 0.
    """
    count = len(scores.best_other)
    if not 0 <= false_accept_rate < 1:
        raise InputError(f"false_accept_rate must be a share from 0 to below 1, found {false_accept_rate}")
    if 0 < false_accept_rate < 1 / count:
        raise InputError(
            f"false_accept_rate {false_accept_rate} cannot be measured on {count} queries: "
            f"ask for {1 / count:.2g} or more"
        )
    strangers = np.sort(scores.best_other)[::-1]
    allowed = int(false_accept_rate * count)
    # Just above the first stranger that must be refused, and among equals all are refused.
    return measure(scores, float(np.nextafter(strangers[allowed], np.float32(np.inf))))


def measure(scores: TopScores, threshold: float) -> NoMatch:
    """Returns how a threshold, calibrated elsewhere, does on these queries."""
    accepted = scores.best >= np.float32(threshold)
    right = accepted & scores.is_hit
    return NoMatch(
        threshold=threshold,
        false_accept_rate=float((scores.best_other >= np.float32(threshold)).mean()),
        precision=float(right.sum() / accepted.sum()) if accepted.any() else None,
        recall=float(right.mean()),
        num_queries=len(accepted),
    )
