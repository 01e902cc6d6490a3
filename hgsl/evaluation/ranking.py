"""The ranking of a retrieval task: one search, from which scores, threshold, pages and tables are derived."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from hgsl.common.errors import InputError
from hgsl.common.eval_checks import checked_ks
from hgsl.common.progress import progress_bar
from hgsl.common.tables import count_of, frame
from hgsl.common.whole_numbers import check_whole_number
from hgsl.evaluation import clustering
from hgsl.evaluation.approximation import overlap
from hgsl.evaluation.knn.knn import k_nearest
from hgsl.evaluation.knn.order import Gallery, neighbor_scores
from hgsl.evaluation.knn.vectors import Ints
from hgsl.evaluation.metrics import Bools, Floats, every_score
from hgsl.evaluation.neighbors import Neighbors, TopPositions, TopScores
from hgsl.evaluation.refine.rerank import KReciprocal, searches_itself
from hgsl.evaluation.result import RetrievalResult
from hgsl.evaluation.task import RetrievalTask


@dataclass(frozen=True, repr=False)
class Ranking:
    """The results of one search of a task.

    Attributes:
        task: The task, restricted to queries with a match in the gallery; the other attributes are in their order.
        result: The scores, after re-ranking where there is any.
        neighbors: The first ``top`` neighbors of each query, after re-ranking where there is any.
        top_positions: The images whose scores a no-match threshold uses, before any re-ranking.
    """

    task: RetrievalTask
    result: RetrievalResult
    neighbors: Neighbors
    top_positions: TopPositions

    @cached_property
    def top_scores(self) -> TopScores:
        """The scores that a no-match threshold uses, before any re-ranking."""
        return self.top_positions.scores(self.task)

    def to_dict(self) -> dict[str, Any]:
        """Returns the scores and counts of the result, and the metric."""
        return {**self.result.to_dict(), "metric": self.task.metric}

    def to_frame(self) -> Any:
        """Returns a pandas DataFrame with one row per query and neighbor: ids, rank, labels, score and hit.

        Raises:
            InputError: pandas is not installed.
        """
        query, rank_number = np.nonzero(self.neighbors.present)
        names = self.task.class_names

        def named(labels: Ints) -> Any:
            return labels if names is None else np.asarray(names)[labels]

        return frame(
            {
                "query": self.result.query_ids[query],
                "query_label": named(self.result.query_labels[query]),
                "rank": rank_number + 1,
                "neighbor": self.neighbors.ids[query, rank_number],
                "neighbor_label": named(self.neighbors.labels[query, rank_number]),
                "score": self.neighbors.scores[query, rank_number],
                "hit": self.neighbors.hits[query, rank_number],
            }
        )

    def __repr__(self) -> str:
        return repr(self.result)

    def _repr_html_(self) -> str:
        return self.result._repr_html_()


def rank(
    task: RetrievalTask,
    ks: int | Sequence[int] = (1, 2, 4, 8),
    *,
    reorder: KReciprocal | None = None,
    top: int = 8,
    index: str = "Flat",
    cluster: bool = False,
    max_memory: int = 1 << 30,
    progress: bool = False,
) -> Ranking:
    """Searches all queries of the task in its gallery, once, and returns all results of this search.

    The depth is max(R + 1, ks, top, depth of the re-ranking), with R the number of a query's matches: the scores need
    R, the threshold the first image of another label. Only ``top`` neighbors of each query are kept; re-ranking
    temporarily stores the neighbors that it reorders and one bit for each further rank.

    Re-ranking also needs the neighborhood of every image. If every image is searched among all others, this search
    provides it; if queries and gallery differ, groups are excluded, queries were expanded or the index is
    approximate, the union of queries and gallery is searched once more. The overlap of an approximate index
    is measured by an exact search of a sample.

    Args:
        task: From ``make_task``.
        ks: The K of Recall@K, Precision@K and mAP@K, each at least 1; MRR uses the max(ks) nearest.
        reorder: Re-ranking of the neighbors.
        top: How many neighbors of each query are kept, with exact scores.
        index: ``Flat`` is exact; any other FAISS factory string is approximate, such as ``IVF4096,Flat nprobe=32``.
        cluster: Whether to add NMI and AMI of a k-means clustering of the queries.
        max_memory: Bytes that the search may use beyond the embeddings (and beyond an approximate index); on a GPU,
            also half of what is free there.
        progress: Whether to show a progress bar on stderr, if that is a terminal.

    Raises:
        InputError: No query has a match in the gallery, or an argument is out of range.
    """
    if not isinstance(task, RetrievalTask):
        raise InputError(
            f"task is of type {type(task).__name__}: expected that of make_task; evaluate_embeddings takes vectors"
        )
    check_whole_number("top", top, 0)
    check_whole_number("max_memory", max_memory, 1)
    ks, top = checked_ks(ks), min(top, len(task.gallery))
    if reorder is not None:
        reorder.check(task)
    answerable = task.answerable
    if not len(answerable):
        raise InputError(
            f"none of the {count_of(len(task.queries), 'query', 'queries')} has another image of its label among "
            f"{count_of(len(task.gallery), 'gallery image')}: give at least two images of one class"
        )
    counted = task.subset(answerable)
    gallery = task.search_gallery(max_memory, index)
    shared = reorder is not None and gallery.exact and searches_itself(task)
    searched, rows = (task, answerable) if shared else (counted, np.arange(len(answerable)))
    counted_row = np.full(len(searched.queries), -1)
    counted_row[rows] = np.arange(len(rows))
    top_positions = TopPositions.empty(len(searched.queries))
    ordered = top if reorder is None else max(top, reorder.depth, reorder.neighborhood)
    deepest_k = min(max(ks), len(task.gallery))  # further ranks hold no image
    depths = np.maximum(searched.relevant + 1, max(deepest_k, ordered))
    blocks = _search(searched, gallery, depths, ordered, top_positions, max_memory, progress)
    if reorder is not None:
        blocks = _rerank(blocks, searched, reorder, shared, max_memory)
    per_query, neighbors = _collect(blocks, counted, counted_row, ks, top)
    result = RetrievalResult(
        ks=ks,
        per_query=per_query,
        query_ids=counted.query_ids,
        query_labels=counted.query_labels,
        num_gallery=len(task.gallery),
        num_skipped=len(task.queries) - len(answerable),
        index=index,
        index_overlap=None if gallery.exact else overlap(counted, gallery, deepest_k, max_memory),
        clustering=clustering.scores(task.queries, task.query_labels) if cluster else {},
        class_names=task.class_names,
    )
    return Ranking(counted, result, neighbors, top_positions.pick(rows))


class _Block(NamedTuple):
    """Some queries: their rows (B,), their first neighbors (B, P), and the hits (B, K) among all their neighbors."""

    rows: Ints
    positions: Ints
    hits: Bools


def _search(
    task: RetrievalTask,
    gallery: Gallery,
    depths: Ints,
    ordered: int,
    top_positions: TopPositions,
    max_memory: int,
    progress: bool,
) -> Iterator[_Block]:
    """Searches block by block, and stores the images that a threshold needs."""
    labels = task.query_labels, task.gallery_labels
    with progress_bar(shown=progress, total=len(depths), desc="search", unit="query") as bar:
        for rows, positions in k_nearest(
            gallery,
            task.queries,
            depths,
            excluded=task.excluded,
            labels=labels,
            ordered=ordered,
            max_memory=max_memory,
        ):
            hits = task.hits(rows, positions)
            top_positions.record(rows, positions, hits)
            yield _Block(rows, positions, hits)
            bar.update(len(rows))


def _rerank(
    blocks: Iterator[_Block], task: RetrievalTask, reorder: KReciprocal, shared: bool, max_memory: int
) -> Iterator[_Block]:
    """The blocks with their first ``reorder.depth`` neighbors reordered, once all queries have been searched."""
    depth = reorder.depth
    nearest = np.empty((len(task.queries), reorder.neighborhood), dtype=np.int64) if shared else None
    stored = []
    for rows, positions, hits in blocks:
        if nearest is not None:
            nearest[rows] = positions[:, : reorder.neighborhood]
        stored.append((rows, positions[:, :depth].astype(np.int32), np.packbits(hits[:, depth:], axis=1), hits.shape))
    rearrange = reorder.fit(task, nearest, max_memory)
    for rows, head, packed, shape in stored:
        positions = rearrange(rows, head.astype(np.int64))
        tail = np.unpackbits(packed, axis=1, count=shape[1] - depth).astype(bool)
        yield _Block(rows, positions, np.hstack([task.hits(rows, positions), tail]))


def _collect(
    blocks: Iterator[_Block], task: RetrievalTask, counted_row: Ints, ks: tuple[int, ...], top: int
) -> tuple[dict[str, Floats], Neighbors]:
    """Scores and first neighbors of the task's queries; ``counted_row`` (searched,) is their row in ``task`` or -1."""
    per_query: dict[str, Floats] = {}
    nearest = np.empty((len(task.queries), top), dtype=np.int64)
    scores = np.empty(nearest.shape, dtype=np.float32)
    for block in blocks:
        rows, positions, hits = counted_row[block.rows], block.positions[:, :top], block.hits
        if (rows < 0).any():
            rows, positions, hits = rows[rows >= 0], positions[rows >= 0], hits[rows >= 0]
        for key, values in every_score(hits, task.relevant[rows], ks).items():
            per_query.setdefault(key, np.empty(len(nearest)))[rows] = values
        nearest[rows] = positions
        scores[rows] = neighbor_scores(task.gallery, positions, task.queries, rows, task.metric)
    return per_query, Neighbors.of(task, nearest, scores)
