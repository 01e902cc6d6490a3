"""When to answer "no match": a similarity below which the nearest image is not believed."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from hgsl.common.errors import InputError
from hgsl.evaluation.neighbors import TopScores


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
