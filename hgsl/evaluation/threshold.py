"""The threshold of "no match": a score below which the nearest image is not accepted.

It is calibrated on strangers: images whose own class is absent from the gallery, or excluded. A stranger's best score
grows with the gallery, so strangers are searched in the gallery that the threshold is for.
"""

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from hgsl.common.errors import InputError
from hgsl.evaluation.knn.knn import k_nearest
from hgsl.evaluation.knn.order import pair_scores
from hgsl.evaluation.knn.vectors import Floats, Ints, Vectors
from hgsl.evaluation.neighbors import TopScores
from hgsl.evaluation.task import RetrievalTask

LEVEL = 0.95
SAMPLES = 1000  # draws of all classes
FEW_CLASSES = 20  # with fewer classes the interval itself is unreliable


@dataclass(frozen=True)
class Calibration:
    """A threshold, and its false-accept rates on the strangers that it was calibrated on.

    Attributes:
        threshold: The nearest image is accepted as a match if its score is at least this.
        asked_rate: The requested false-accept rate.
        false_accept_rate: Share of the strangers that are accepted; at most ``asked_rate``.
        expected_rate: The same for classes that were not calibrated on: the mean over strangers of each class, with
            the threshold calibrated on all other classes.
        interval: 95% interval of ``expected_rate``, from resampled classes.
        num_queries: Number of strangers.
        num_classes: Number of their classes.
        num_gallery: Images of the gallery; another gallery needs another calibration.
    """

    threshold: float
    asked_rate: float
    false_accept_rate: float
    expected_rate: float
    interval: tuple[float, float]
    num_queries: int
    num_classes: int
    num_gallery: int

    @property
    def warning(self) -> str | None:
        """A warning for reports; None if there are enough classes."""
        if self.num_classes >= FEW_CLASSES:
            return None
        return (
            f"no-match is calibrated on {self.num_classes} classes only: the false-accept rate of others may be far "
            f"from {100 * self.asked_rate:g} %"
        )

    def to_dict(self) -> dict[str, Any]:
        """Returns the attributes for a JSON report."""
        return {**asdict(self), "interval": list(self.interval)}


@dataclass(frozen=True)
class Acceptance:
    """The performance of a threshold on queries whose class is in the gallery.

    Attributes:
        threshold: The nearest image is accepted as a match if its score is at least this.
        false_accept_rate: Share of queries that would be accepted if their own class were not in the gallery.
        precision: Share of accepted queries whose nearest image is of their class; None if none is accepted.
        recall: Share of all queries that are accepted and whose nearest image is of their class.
        num_queries: Number of queries.
    """

    threshold: float
    false_accept_rate: float
    precision: float | None
    recall: float
    num_queries: int

    def to_dict(self) -> dict[str, Any]:
        """Returns the attributes for a JSON report."""
        return asdict(self)


def stranger_task(task: RetrievalTask, vectors: Vectors, labels: Ints) -> RetrievalTask:
    """Returns the task of strangers in the gallery of ``task``: gallery images of a stranger's label are excluded.

    Args:
        task: With the gallery.
        vectors: (M, D) of the strangers.
        labels: (M,) their labels, in the encoding of the gallery's labels.
    """
    if vectors.width != task.gallery.width:
        raise InputError(
            f"validation embeddings have {vectors.width} dimensions and the gallery {task.gallery.width}: both must "
            "come from one model"
        )
    return replace(
        task,
        queries=vectors,
        query_labels=labels,
        query_ids=np.arange(len(labels)),
        excluded=((labels, task.gallery_labels),),
        relevant=np.zeros(len(labels), dtype=np.int64),
    )


def stranger_scores(task: RetrievalTask, *, max_memory: int = 1 << 30) -> Floats:
    """Searches each stranger's nearest gallery image, exactly, and returns its score (M,); -inf without any."""
    gallery = task.search_gallery(max_memory)
    scores = np.empty(len(task.queries), dtype=np.float32)
    depths = np.ones(len(scores), dtype=np.int64)
    for rows, positions in k_nearest(gallery, task.queries, depths, excluded=task.excluded, max_memory=max_memory):
        scores[rows] = pair_scores(task.gallery, positions[:, 0], task.queries, rows, task.metric)
    return scores


def calibrate(scores: Floats, labels: Ints, false_accept_rate: float, num_gallery: int) -> Calibration:
    """Returns the lowest threshold that accepts at most this share of the strangers.

    Args:
        scores: (M,) each stranger's best score in the gallery.
        labels: (M,) their labels.
        false_accept_rate: The requested rate, from 0 to below 1.
        num_gallery: Images of the gallery.

    Raises:
        InputError: The rate is out of range, or cannot be estimated: too few strangers to distinguish it from 0,
            strangers of a single class, or a gallery without images of other classes than theirs.
    """
    count, classes = len(scores), np.unique(labels)
    if not 0 <= false_accept_rate < 1:
        raise InputError(f"no_match is a false-accept rate from 0 to below 1, found {false_accept_rate}")
    if len(classes) < 2:
        raise InputError(
            f"no_match cannot be calibrated on {count} validation images of {len(classes)} class: the rate of other "
            f"classes cannot be estimated from them; give images of at least two, better of {FEW_CLASSES} or more"
        )
    if np.isneginf(scores).any():
        raise InputError(
            "no_match cannot be calibrated: the gallery holds no image of another class than the validation images "
            "have, give a gallery of more classes"
        )
    if false_accept_rate > 0 and _allowed(false_accept_rate, count) < 1:
        raise InputError(
            f"no_match {false_accept_rate} cannot be measured on {count} validation images: "
            f"ask for {_rounded_up(1 / count):g} or more"
        )
    threshold = _lowest_threshold(np.sort(scores)[::-1], false_accept_rate)
    accepted = _accepted_out_of_class(scores, labels, false_accept_rate)
    return Calibration(
        threshold=threshold,
        asked_rate=false_accept_rate,
        false_accept_rate=float((scores >= np.float32(threshold)).mean()),
        expected_rate=float(accepted.mean()),
        interval=accepted_interval(accepted, labels),
        num_queries=count,
        num_classes=len(classes),
        num_gallery=num_gallery,
    )


def accepted_interval(accepted: np.ndarray, labels: Ints, nearest: Ints | None = None) -> tuple[float, float]:
    """Returns the 95 % interval of the share of accepted strangers, by a bootstrap over classes.

    If none is accepted, resampling says nothing, and the upper end is that of a one-sided interval: the share of
    accepted classes at which ``n`` classes have none with a probability of 5 %.

    Args:
        accepted: (M,) whether each stranger is accepted.
        labels: (M,) their labels.
        nearest: (M,) labels of their nearest images, where the strangers are images of the gallery themselves: a class
            is then resampled in both roles at once.
    """
    others = labels if nearest is None else nearest
    classes, numbers = np.unique(np.concatenate([labels, others]), return_inverse=True)
    of_stranger, of_nearest = numbers[: len(labels)], numbers[len(labels) :]
    generator, shares = np.random.default_rng(0), []
    for _ in range(SAMPLES):
        drawn = np.bincount(generator.integers(0, len(classes), len(classes)), minlength=len(classes))
        weights = drawn[of_stranger] if nearest is None else drawn[of_stranger] * drawn[of_nearest]
        if weights.any():
            shares.append(float(weights @ accepted / weights.sum()))
    low, high = np.percentile(shares or [0, 1], [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    if not accepted.any():
        high = 1 - (1 - LEVEL) ** (1 / len(np.unique(labels)))
    return float(low), float(high)


def measure(scores: TopScores, threshold: float) -> Acceptance:
    """Measures a threshold, calibrated on strangers, on these queries.

    Raises:
        InputError: There are no queries.
    """
    if not len(scores.best):
        raise InputError("no query has a match in the gallery: there is nothing to measure a threshold on")
    accepted = scores.best >= np.float32(threshold)
    correct = accepted & scores.is_hit
    return Acceptance(
        threshold=threshold,
        false_accept_rate=float((scores.best_other >= np.float32(threshold)).mean()),
        precision=float(correct.sum() / accepted.sum()) if accepted.any() else None,
        recall=float(correct.mean()),
        num_queries=len(accepted),
    )


def _allowed(rate: float, count: int) -> int:
    """How many of ``count`` strangers may be accepted; rounded, since 0.29 * 100 is less than 29 in floating point."""
    return math.floor(round(rate * count, 9))


def _lowest_threshold(descending: Floats, rate: float) -> float:
    """The float above the score of the first stranger to reject; equal scores are all rejected."""
    return float(np.nextafter(descending[_allowed(rate, len(descending))], np.float32(np.inf)))


def _accepted_out_of_class(scores: Floats, labels: Ints, rate: float) -> np.ndarray:
    """(M,) float64, whether each stranger is accepted by the threshold calibrated on all other classes."""
    order = np.argsort(-scores, kind="stable")
    descending, classes = scores[order], labels[order]
    accepted = np.zeros(len(scores))
    for label in np.unique(labels):
        others = descending[classes != label]
        members = labels == label
        accepted[members] = scores[members] >= np.float32(_lowest_threshold(others, rate))
    return accepted


def _rounded_up(share: float) -> float:
    """A share rounded up to two digits, so that it is accepted as a requested rate."""
    scale = 10 ** (1 - math.floor(math.log10(share)))
    return math.ceil(round(share * scale, 9)) / scale
