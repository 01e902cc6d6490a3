"""A state of an index folder, searched by FAISS or exactly, ordered by the rule of ``evaluation.knn``."""

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hgsl.common.faiss_factory import FLAT
from hgsl.evaluation.knn.backends import Backend
from hgsl.evaluation.knn.knn import k_nearest
from hgsl.evaluation.knn.order import Gallery, neighbor_scores
from hgsl.evaluation.knn.vectors import Floats, Ints, Vectors
from hgsl.search.folder import faiss_file
from hgsl.search.folder.backend import restricted
from hgsl.search.folder.table import ImageTable
from hgsl.search.stores.protocol import Hit
from hgsl.search.where.mask import mask_of
from hgsl.search.where.nodes import FIELDS, Condition

MAX_MATCHES = 32  # conditions whose images are kept
COPIED_SHARE = 0.1  # of the images: so many are searched in a copy of their vectors, more by leaving out the others


class FolderSnapshot:
    """A state of an index folder; it stays readable while the folder is updated.

    Args:
        record: The contents of ``index.json``.
        table: The rows.
        vectors: Of the rows, (rows, D), memory-mapped.
        backend: k-NN backend over the rows.
    """

    def __init__(self, record: dict[str, Any], table: ImageTable, vectors: Vectors, backend: Backend) -> None:
        self.record: dict[str, Any] = record
        self.exact: bool = record["index_type"] == FLAT
        self._table, self._vectors = table, vectors
        self._live = table.live()
        self.labels: Mapping[str, int] = Counter(
            label for label in map(table.labels.__getitem__, self._live) if label is not None
        )
        self._position_of = {table.numbers[row]: position for position, row in enumerate(self._live.tolist())}
        self._rank = _ranks([table.paths[row] for row in self._live])
        self._at_rank = np.argsort(self._rank)
        self._matches: dict[Condition, Ints] = {}
        self._flat = faiss_file.flat(vectors)
        self._gallery = self._gallery_of(np.arange(len(self._live)), backend, self.exact)

    def __len__(self) -> int:
        return len(self._live)

    def search(self, queries: Vectors, k: int, where: Condition | None = None) -> list[list[Hit]]:
        """Returns the k nearest images of each query that satisfy a condition."""
        if where is None:
            return self._search(self._gallery, queries, k)
        positions = self._matching(where)
        if not len(positions):
            return [[] for _ in range(len(queries))]
        return self._search(self._filtered_gallery(positions), queries, k)

    def search_exactly(self, queries: Vectors, k: int) -> list[list[Hit]]:
        """Returns the k nearest images of each query, compared with every vector."""
        return self._search(self._gallery_of(np.arange(len(self)), self._flat, exact=True), queries, k)

    def count(self, where: Condition | None = None) -> int:
        """Returns the number of images that satisfy a condition."""
        return len(self) if where is None else len(self._matching(where))

    def images(self, numbers: Sequence[int]) -> list[Hit]:
        """Returns images by their numbers; unknown numbers are left out."""
        return [self._hit(self._position_of[number], 1.0) for number in numbers if number in self._position_of]

    def vectors(self, numbers: Sequence[int]) -> Floats:
        """Returns the vectors (B, D) of images."""
        return self._vectors.rows(self._live[[self._position_of[number] for number in numbers]])

    def spread(self, count: int, where: Condition | None = None) -> list[int]:
        """Returns numbers of images, spaced evenly in the order of their paths."""
        positions = np.arange(len(self)) if where is None else self._matching(where)
        positions = positions[np.argsort(self._rank[positions])]
        chosen = positions[np.unique(np.linspace(0, len(positions) - 1, count).astype(int))] if len(positions) else ()
        return [self._table.numbers[self._live[position]] for position in chosen]

    def labeled(self) -> tuple[list[int], list[str]]:
        """Returns the numbers and the labels of the images that have one, in the order of their paths."""
        rows = [row for row in self._live[self._at_rank].tolist() if self._table.labels[row] is not None]
        return [self._table.numbers[row] for row in rows], [self._table.labels[row] or "" for row in rows]

    def nearest_of_other_label(self, numbers: Sequence[int]) -> tuple[Floats, list[str]]:
        """Returns the similarity (Q,) and the label of the nearest image of another label."""
        labeled = np.flatnonzero(self._columns["label"] != "")
        names, codes = np.unique(self._columns["label"][labeled].astype(str), return_inverse=True)
        queries = np.searchsorted(labeled, [self._position_of[number] for number in numbers])
        gallery = self._filtered_gallery(labeled)
        vectors = gallery.vectors.pick(queries)
        scores, nearest = np.empty(len(queries), np.float32), np.empty(len(queries), np.int64)
        options: Any = {"excluded": [(codes[queries], codes)], "max_memory": faiss_file.MAX_MEMORY}
        for part, positions in k_nearest(gallery, vectors, np.ones(len(queries), np.int64), **options):
            scores[part] = neighbor_scores(gallery.vectors, positions[:, :1], vectors, part, faiss_file.METRIC)[:, 0]
            nearest[part] = positions[:, 0]
        return scores, names[codes[nearest]].tolist()

    @cached_property
    def _columns(self) -> dict[str, NDArray[Any]]:
        """Field -> values of the images, as conditions use them."""
        table, live = self._table, self._live.tolist()
        texts: dict[str, list[Any]] = {"path": table.paths, "label": table.labels}
        numbers: dict[str, list[Any]] = {"size": table.sizes, "time": [time / 1e9 for time in table.times]}
        for name, kind in self.record["columns"].items():
            if name not in FIELDS:
                (texts if kind == "text" else numbers)[name] = table.values.get(name, [None] * len(table))
        return {
            **{name: np.array([column[row] or "" for row in live], dtype=object) for name, column in texts.items()},
            **{name: np.array([column[row] for row in live], dtype=np.float64) for name, column in numbers.items()},
        }

    def _matching(self, where: Condition) -> Ints:
        """The positions of the images that satisfy a condition; those of the last few conditions are kept."""
        positions = self._matches.get(where)
        if positions is None:
            if len(self._matches) >= MAX_MATCHES:
                self._matches.clear()
            positions = self._matches[where] = np.flatnonzero(mask_of(where, self._columns))
        return positions

    def _gallery_of(self, positions: Ints, backend: Backend, exact: bool) -> Gallery:
        """The images at ``positions``, searched through a backend over all rows."""
        rows = self._live[positions]
        every = len(rows) == len(self._vectors)
        vectors = self._vectors if every else self._vectors.pick(rows)
        backend = backend if every else restricted(backend, len(self._vectors), rows)
        return Gallery(vectors, self._rank[positions], faiss_file.METRIC, backend, exact)

    def _filtered_gallery(self, positions: Ints) -> Gallery:
        """The images at ``positions``, always searched exactly."""
        if len(positions) > COPIED_SHARE * len(self):
            return self._gallery_of(positions, self._flat, exact=True)
        vectors = self._vectors.pick(self._live[positions])
        return Gallery(vectors, self._rank[positions], faiss_file.METRIC, faiss_file.flat(vectors))

    def _search(self, gallery: Gallery, queries: Vectors, k: int) -> list[list[Hit]]:
        results: list[list[Hit]] = [[] for _ in range(len(queries))]
        depths = np.full(len(queries), min(k, len(gallery.vectors)))
        for rows, neighbors in k_nearest(gallery, queries, depths, max_memory=faiss_file.MAX_MEMORY):
            similarities = neighbor_scores(gallery.vectors, neighbors, queries, rows, gallery.metric)
            for row, line, values in zip(rows, neighbors, similarities, strict=True):
                valid = line >= 0  # an approximate index may return fewer
                positions = self._at_rank[gallery.ids[line[valid]]]
                results[row] = [self._hit(*pair) for pair in zip(positions, values[valid].tolist(), strict=True)]
        return results

    def _hit(self, position: int, similarity: float) -> Hit:
        row = int(self._live[position])
        return Hit(self._table.numbers[row], self._table.paths[row], self._table.labels[row], similarity)


def _ranks(paths: Sequence[str]) -> Ints:
    """The rank of each path in their order: equal similarities are ordered by it."""
    ranks = np.empty(len(paths), dtype=np.int64)
    ranks[sorted(range(len(paths)), key=paths.__getitem__)] = np.arange(len(paths))
    return ranks
