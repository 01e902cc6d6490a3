"""What an index remembers beside its photos: the model, where labels come from, the threshold of "no match"."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hgsl.common.errors import InputError
from hgsl.search.encoder import Encoder
from hgsl.search.photos import Listing, folder_labels, table_labels

NO_MATCH = "no_match.json"  # in a run folder: the threshold that its evaluation calibrated
FOLDERS = "folders"


def model_record(encoder: Encoder, checkpoint: str | Path | None) -> dict[str, Any]:
    return {
        "fingerprint": encoder.fingerprint,
        "checkpoint": None if checkpoint is None else str(checkpoint),
        "architecture": encoder.model.architecture,
        "data_config": json.loads(json.dumps(encoder.model.data_config)),  # as JSON gives it back: lists, no tuples
    }


def label_source(labels: str | Path | None, old: Mapping[str, Any]) -> str:
    if labels is None:
        return old.get("labels", FOLDERS)
    return FOLDERS if str(labels) == FOLDERS else str(Path(labels).expanduser().absolute())


def labels(source: str, root: Path, listing: Listing, notes: list[str]) -> dict[str, str]:
    paths = [photo.path for photo in listing.photos]
    if source == FOLDERS:
        return folder_labels(paths)
    labels = table_labels(Path(source), root)
    missing = sorted(set(labels) - set(paths))
    if missing:
        notes.append(f"{source} labels {len(missing):,} photos that are not in {root}, such as {missing[0]}")
    return labels


def no_match(given: float | None, checkpoint: str | Path | None, notes: list[str]) -> dict[str, Any] | None:
    """The threshold and where it is from."""
    if given is not None:
        if not -1 <= given <= 1:
            raise InputError(f"no_match is a cosine similarity from -1 to 1, found {given}")
        return {"threshold": float(given), "source": "given"}
    path = Path(checkpoint or "") / NO_MATCH
    if checkpoint is None or not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        threshold, metric = float(content["threshold"]), content["metric"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged ({error}): calibrate again, or give --no-match") from None
    if metric != "cosine" or content.get("post_processing") or not math.isfinite(threshold):
        notes.append(f"{path} was calibrated for other scores than plain cosine similarity and is not used")
        return None
    return {"threshold": threshold, "source": str(path)}
