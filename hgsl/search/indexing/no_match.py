"""The no-match threshold of an index: given by the user, or calibrated by the evaluation of its model."""

import math
from pathlib import Path
from typing import Any

from hgsl.common.no_match import FILE_NAME, read_no_match
from hgsl.search.checks import check_threshold


def no_match_record(given: float | None, checkpoint: str | Path | None, notes: list[str]) -> dict[str, Any] | None:
    """The threshold with its source for ``index.json``, or None where neither is at hand.

    Raises:
        InputError: The given threshold is not a cosine similarity, or the file of the run is damaged.
    """
    if given is not None:
        check_threshold(given)
        return {"threshold": float(given), "source": "given"}
    content = None if checkpoint is None else read_no_match(checkpoint)
    if checkpoint is None or content is None:
        return None
    path, threshold = Path(checkpoint) / FILE_NAME, content["threshold"]
    if content["metric"] != "cosine" or content.get("post_processing") or not math.isfinite(threshold):
        notes.append(f"{path} was calibrated for other scores than plain cosine similarity and is not used")
        return None
    return {"threshold": threshold, "source": str(path)}
