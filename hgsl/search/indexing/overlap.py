"""Overlap of an approximate index with exact search, on a sample of its images."""

from collections.abc import Mapping
from typing import Any

from hgsl.common.errors import InputError
from hgsl.evaluation.knn.vectors import open_vectors
from hgsl.search.stores.protocol import Snapshot

QUERIES, DEPTH = 100, 10
CHANGED_SHARE = 0.1  # of the images: with fewer changes, the overlap is not measured again


def measure_overlap(snapshot: Snapshot, previous: Mapping[str, Any], notes: list[str]) -> dict[str, Any] | None:
    """Measures which share of the nearest images by exact search an approximate index finds.

    Args:
        snapshot: The index.
        previous: Its previous record, whose measurement is kept if few images were added since.
        notes: The share is appended.

    Returns:
        The entry of the record of the index; None for an exact one, or one that is too large.
    """
    if snapshot.exact:
        return None
    recorded = previous.get("overlap")
    if (
        recorded
        and previous["index_type"] == snapshot.record["index_type"]
        and abs(len(snapshot) - recorded["images"]) < CHANGED_SHARE * recorded["images"]
    ):
        return dict(recorded)
    numbers = snapshot.spread(QUERIES)
    queries = open_vectors(snapshot.vectors(numbers), "queries")
    try:
        exact = snapshot.search_exactly(queries, DEPTH + 1)  # the first is the image itself
    except InputError as error:
        notes.append(f"the overlap of the index with exact search is not measured: {error}")
        return None
    approximate = snapshot.search(queries, DEPTH + 1)
    neighbors, approximate_neighbors = (
        [{hit.id for hit in row if hit.id != number} for row, number in zip(rows, numbers, strict=True)]
        for rows in (exact, approximate)
    )
    in_both = sum(len(a & b) for a, b in zip(neighbors, approximate_neighbors, strict=True))
    share = in_both / max(1, sum(map(len, neighbors)))
    notes.append(f"the index finds {share:.1%} of the {DEPTH} nearest images of {len(numbers)} images of the index")
    return {"overlap": share, "queries": len(numbers), "depth": DEPTH, "images": len(snapshot)}
