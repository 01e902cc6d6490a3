"""The no-match threshold of an index: given by the user, or that of the model's run, calibrated again on the index.

A stranger is a query whose class is absent from the gallery. Its similarity to the nearest image grows with the
gallery, so a threshold calibrated on a small gallery accepts too many strangers in a larger one. Each labeled image of
the index, searched with its own class excluded, serves as a stranger.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hgsl.common.errors import InputError
from hgsl.common.no_match import FILE_NAME, read_no_match
from hgsl.common.split_record import read_split_record
from hgsl.evaluation.knn.vectors import Ints
from hgsl.evaluation.threshold import FEW_CLASSES, accepted_interval, calibrate
from hgsl.search.checks import check_threshold
from hgsl.search.stores.protocol import Snapshot

MAX_QUERIES = 2000  # labeled images searched as strangers
GIVEN = "given"  # source of a threshold that the user set


def threshold_source(
    given: float | None, checkpoint: str | Path | None, previous: Mapping[str, Any], notes: list[str]
) -> dict[str, Any] | None:
    """The source of the threshold, not yet calibrated on the index; None if there is no threshold.

    Args:
        given: The threshold that the user set, used without calibration.
        checkpoint: A run folder, which may hold a threshold from an evaluation.
        previous: The previous settings of the index.
        notes: Messages to the user are appended.

    Raises:
        InputError: The given threshold is not a cosine similarity, or the file of the run is damaged.
    """
    if given is not None:
        check_threshold(given)
        return {"threshold": float(given), "source": GIVEN}
    folder = None if checkpoint is None else Path(checkpoint).expanduser()
    content = None if folder is None else read_no_match(folder)
    if folder is None or content is None:
        return previous.get("no_match")
    path, threshold = folder / FILE_NAME, content["threshold"]
    if content["metric"] != "cosine" or content.get("post_processing") or not math.isfinite(threshold):
        notes.append(f"{path} was calibrated for other scores than plain cosine similarity and is not used")
        return previous.get("no_match")
    calibration = content.get("calibration", {})
    if not isinstance(calibration.get("asked_rate"), float | int):
        raise InputError(f"{path} lacks the requested rate: calibrate again with hgsl-eval --no-match")
    split = read_split_record(folder)
    trained = sorted(split.trained_classes) if split else []
    rate = float(calibration["asked_rate"])
    return {"source": str(path), "run_threshold": threshold, "rate": rate, "trained_classes": trained}


def calibrated(source: dict[str, Any] | None, snapshot: Snapshot, notes: list[str]) -> dict[str, Any] | None:
    """Calibrates the threshold of a run on the images of the index.

    It is raised until at most the run's share of strangers is accepted, and never lowered, since images of classes that
    the model was trained on are less similar to other classes than strangers are. For the same reason, images of
    classes with the names of trained ones are no strangers, as long as the others suffice. An index with fewer than two
    labels has no threshold.

    Args:
        source: From :func:`threshold_source`.
        snapshot: The images of the index.
        notes: Messages to the user are appended.

    Returns:
        The entry of the record of the index: threshold, source, rate, number of images, strangers and classes, and the
        share of accepted strangers with its 95 % interval.
    """
    if source is None or source["source"] == GIVEN:
        return source
    numbers, image_labels = snapshot.labeled()
    names, labels = np.unique(np.array(image_labels, dtype=str), return_inverse=True)
    trained = source.get("trained_classes", [])
    entry = {key: source[key] for key in ("source", "run_threshold", "rate")} | {"images": len(snapshot)}
    entry["trained_classes"] = trained
    try:
        if len(names) < 2:
            raise InputError("its images need labels of two classes or more (--labels)")
        is_trained = np.isin(names, trained)
        candidates = _unseen(labels, is_trained, source["rate"], notes)
        chosen = candidates[np.unique(np.linspace(0, len(candidates) - 1, MAX_QUERIES).astype(np.int64))]
        strangers, nearest_names = snapshot.nearest_of_other_label([numbers[row] for row in chosen])
        classes, nearest = labels[chosen], np.searchsorted(names, nearest_names)
        calibration = calibrate(strangers, classes, source["rate"], len(snapshot))
    except InputError as error:
        notes.append(
            f"the threshold of {source['source']} belongs to another gallery, cannot be calibrated on this index and "
            f"is not used: {error}; --no-match gives a threshold"
        )
        return {**entry, "threshold": None}
    threshold = max(source["run_threshold"], calibration.threshold)
    accepted = strangers >= np.float32(threshold)
    low, high = accepted_interval(accepted, classes, nearest)
    count = len(np.unique(classes))
    notes.append(_summary(threshold, source["rate"], float(accepted.mean()), low, high, len(strangers), count))
    measured = {"strangers": len(strangers), "classes": count, "accepted": float(accepted.mean())}
    return {**entry, "threshold": threshold, **measured, "interval": [low, high]}


def _unseen(labels: Ints, is_trained: NDArray[np.bool_], rate: float, notes: list[str]) -> Ints:
    """The rows that may be strangers: those of classes not trained on, or all, with a note, if these are too few."""
    trained = int(is_trained.sum())
    rows = np.flatnonzero(~is_trained[labels])
    if not trained:
        return rows
    if len(is_trained) - trained >= 2 and len(rows) * rate >= 1:
        notes.append(f"the {trained:,} classes that the model was trained on are not among the strangers below")
        return rows
    notes.append(
        f"the model was trained on {trained:,} of the {len(is_trained):,} classes, which are easier strangers than new "
        "ones: more of those will be accepted than stated below"
    )
    return np.arange(len(labels))


def _summary(
    threshold: float, rate: float, accepted: float, low: float, high: float, strangers: int, classes: int
) -> str:
    caveat = "; so few classes give an unreliable estimate" if classes < FEW_CLASSES else ""
    return (
        f"no match below {threshold:.4f}: of {strangers:,} images of {classes:,} classes, each searched without its "
        f"own class, {accepted:.1%} are accepted (95 % interval {low:.1%} to {high:.1%}, asked {rate:.1%}{caveat}); "
        "the share may be higher for images unlike the training images"
    )
