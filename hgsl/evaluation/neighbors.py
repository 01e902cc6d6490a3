"""Parts of a ranking that are stored per query: its first neighbors, and what a no-match threshold needs of them."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hgsl.evaluation.knn.order import pair_scores
from hgsl.evaluation.knn.vectors import Floats, Ints
from hgsl.evaluation.task import RetrievalTask


@dataclass(frozen=True)
class Neighbors:
    """The first neighbors of every query with a match, best first.

    Attributes:
        positions: (Q, K) gallery rows; -1 where the gallery has no more images.
        ids: (Q, K) ids of these images; 0 where there is none.
        labels: (Q, K) their labels; 0 where there is none.
        scores: (Q, K) their exact scores; -inf where there is none. After re-ranking they need not decrease.
        hits: (Q, K) whether they have the query's label.
    """

    positions: Ints
    ids: Ints
    labels: Ints
    scores: Floats
    hits: NDArray[np.bool_]

    @classmethod
    def of(cls, task: RetrievalTask, positions: Ints, scores: Floats) -> "Neighbors":
        """The neighbors of the task's queries at these gallery rows."""
        absent = positions < 0
        return cls(
            positions,
            np.where(absent, 0, task.gallery_ids[positions]),
            np.where(absent, 0, task.gallery_labels[positions]),
            scores,
            task.hits(np.arange(len(positions)), positions),
        )

    def first(self, count: int) -> "Neighbors":
        """The first ``count`` neighbors of each query."""
        return Neighbors(*(column[:, :count] for column in vars(self).values()))

    @property
    def present(self) -> NDArray[np.bool_]:
        """(Q, K) whether the gallery has an image at this rank."""
        return self.positions >= 0


@dataclass(frozen=True)
class TopScores:
    """The scores that decide acceptance, by the order of the search, before any re-ranking.

    Attributes:
        best: (Q,) score of the nearest image; -inf where there is none.
        is_hit: (Q,) whether that image has the query's label.
        best_other: (Q,) score of the nearest image of another label; -inf where there is none.
    """

    best: Floats
    is_hit: NDArray[np.bool_]
    best_other: Floats


@dataclass(frozen=True)
class TopPositions:
    """The images whose scores are the ``TopScores``.

    Attributes:
        nearest: (Q,) gallery row of the nearest image; -1 where there is none.
        is_hit: (Q,) whether that image has the query's label.
        nearest_other: (Q,) gallery row of the nearest image of another label; -1 where there is none.
    """

    nearest: Ints
    is_hit: NDArray[np.bool_]
    nearest_other: Ints

    @classmethod
    def empty(cls, count: int) -> "TopPositions":
        """Uninitialized positions of ``count`` queries."""
        return cls(np.empty(count, np.int64), np.empty(count, bool), np.empty(count, np.int64))

    def record(self, rows: Ints, positions: Ints, hits: NDArray[np.bool_]) -> None:
        """Stores the positions of queries ``rows``, given at least R + 1 neighbors of each."""
        self.nearest[rows], self.is_hit[rows] = positions[:, 0], hits[:, 0]
        self.nearest_other[rows] = np.take_along_axis(positions, hits.argmin(axis=1, keepdims=True), 1)[:, 0]

    def pick(self, rows: Ints) -> "TopPositions":
        """The positions of some of the queries."""
        return TopPositions(self.nearest[rows], self.is_hit[rows], self.nearest_other[rows])

    def scores(self, task: RetrievalTask) -> TopScores:
        """The scores of these images with the queries of the task."""
        rows = np.arange(len(self.nearest))
        best, best_other = (
            pair_scores(task.gallery, positions, task.queries, rows, task.metric)
            for positions in (self.nearest, self.nearest_other)
        )
        return TopScores(best, self.is_hit, best_other)
