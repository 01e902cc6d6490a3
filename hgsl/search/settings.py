"""What an index remembers beside its photos: the model, where labels come from, the threshold of "no match"."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hgsl.common.errors import InputError
from hgsl.common.no_match import FILE_NAME, read_no_match
from hgsl.search.encoder import Encoder
from hgsl.search.photos import Listing, folder_labels, table_labels

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
    content = None if checkpoint is None else read_no_match(checkpoint)
    if checkpoint is None or content is None:
        return None
    path, threshold = Path(checkpoint) / FILE_NAME, content["threshold"]
    if content["metric"] != "cosine" or content.get("post_processing") or not math.isfinite(threshold):
        notes.append(f"{path} was calibrated for other scores than plain cosine similarity and is not used")
        return None
    return {"threshold": threshold, "source": str(path)}
