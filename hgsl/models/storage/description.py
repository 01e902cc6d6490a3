"""Model descriptions in JSON files, validated value by value since they may be untrusted."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hgsl.common.errors import InputError
from hgsl.models.backbone_source import check_model_args
from hgsl.models.create import MAX_IMAGE_SIZE
from hgsl.models.embedder import Embedder
from hgsl.models.views import check_views

ARCHITECTURE = ("backbone", "model_args", "pooling", "embedding_size", "output_stride", "flip", "scales", "whitening")
DATA_CONFIG = ("image_size", "interpolation", "mean", "std", "crop_pct", "crop_mode")


@dataclass(frozen=True)
class Description:
    """A model without its weights.

    Attributes:
        architecture: Arguments of ``build_embedder``, except ``image_size``.
        data_config: Preprocessing in timm's terms, and ``image_size``, the side in pixels of the square input.
    """

    architecture: dict[str, Any]
    data_config: dict[str, Any]


def check_embedder(model: object) -> None:
    """Checks that the argument ``model`` is an embedder.

    Raises:
        InputError: It is another network, or none.
    """
    if not isinstance(model, Embedder):
        raise InputError(
            f"model is of type {type(model).__name__}: expected the Embedder of create_embedder or load_embedder"
        )


def describe_model(model: Embedder) -> Description:
    """Returns the description of a model, as its JSON file holds it."""
    return Description(dict(model.architecture), {key: model.data_config[key] for key in DATA_CONFIG})


def from_run_description(content: Mapping[str, Any], path: Path) -> Description:
    """Returns the description in the content of a ``model.json``.

    Raises:
        InputError: An entry is missing, of the wrong type, or out of bounds; the message names file and entry.
    """
    missing = {"architecture", "data_config"} - set(content)
    if missing:
        raise InputError(f"{path} lacks {', '.join(sorted(missing))}: it was not written by this version of hgsl")
    architecture = _select(content, "architecture", ARCHITECTURE, path)
    data_config = _select(content, "data_config", DATA_CONFIG, path)
    for key in ("backbone", "pooling"):
        _require(isinstance(architecture[key], str), path, key, architecture[key], "a name")
    for key in ("embedding_size", "output_stride"):
        value = architecture[key]
        _require(value is None or (_is_integer(value) and value > 0), path, key, value, "a positive integer or null")
    whitening = architecture["whitening"]
    is_whitening = whitening in (None, "mean") or (_is_integer(whitening) and whitening > 0)
    _require(is_whitening, path, "whitening", whitening, "a positive integer, 'mean' or null")
    try:
        check_views(architecture["flip"], architecture["scales"])
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    architecture["model_args"] = check_model_args(architecture["model_args"], str(path))
    _check_data_config(data_config, path)
    return Description(architecture, data_config)


def to_hub_config(description: Description, num_features: int, version: str) -> dict[str, Any]:
    """Returns the content of ``config.json``: timm's keys where timm has one, and an entry ``hgsl`` for the rest."""
    architecture, data_config = dict(description.architecture), dict(description.data_config)
    size = data_config.pop("image_size")
    return {
        "architecture": architecture.pop("backbone"),
        "model_args": architecture.pop("model_args"),
        "num_classes": 0,
        "num_features": num_features,
        "pretrained_cfg": {**data_config, "input_size": [3, size, size], "num_classes": 0},
        "hgsl": {**architecture, "version": version},
    }


def from_hub_config(content: Mapping[str, Any], path: Path) -> Description:
    """Returns the description in the content of a ``config.json``; the inverse of :func:`to_hub_config`.

    Raises:
        InputError: As :func:`from_run_description`.
    """
    hgsl_entry, data_config = content.get("hgsl"), content.get("pretrained_cfg")
    if not isinstance(hgsl_entry, Mapping) or not isinstance(data_config, Mapping):
        raise InputError(f"{path} has no entries 'hgsl' and 'pretrained_cfg': it describes no embedder written by hgsl")
    size = data_config.get("input_size")
    _require(isinstance(size, list) and len(size) == 3, path, "input_size", size, "[3, side, side]")
    timm_entries = {"backbone": content.get("architecture"), "model_args": content.get("model_args")}
    other_entries = {key: hgsl_entry.get(key) for key in ARCHITECTURE if key not in timm_entries}
    return from_run_description(
        {
            "architecture": {**timm_entries, **other_entries},
            "data_config": {**data_config, "image_size": size[-1]},  # type: ignore[index]
        },
        path,
    )


def _check_data_config(values: Mapping[str, Any], path: Path) -> None:
    size = values["image_size"]
    expected = f"1 to {MAX_IMAGE_SIZE} pixels"
    _require(_is_integer(size) and 0 < size <= MAX_IMAGE_SIZE, path, "image_size", size, expected)
    for key in ("mean", "std"):
        value = values[key]
        is_valid = isinstance(value, list) and len(value) == 3 and all(_is_number(number) for number in value)
        _require(is_valid and (key == "mean" or min(value) > 0), path, key, value, "three numbers, one per channel")
    crop_pct = values["crop_pct"]
    _require(_is_number(crop_pct) and 0 < crop_pct <= 1, path, "crop_pct", crop_pct, "a fraction above 0 and at most 1")
    for key in ("interpolation", "crop_mode"):
        _require(isinstance(values[key], str), path, key, values[key], "a name")


def _select(content: Mapping[str, Any], name: str, keys: tuple[str, ...], path: Path) -> dict[str, Any]:
    """Returns the entries ``keys`` of the object ``name``; others are dropped, so that none reaches a constructor."""
    value = content[name]
    _require(isinstance(value, Mapping), path, name, value, "an object")
    missing = [key for key in keys if key not in value]
    if missing:
        raise InputError(f"{path}: {name} lacks {', '.join(missing)}: it was not written by this version of hgsl")
    return {key: value[key] for key in keys}


def _is_integer(value: object) -> bool:
    return type(value) is int


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]


def _require(condition: bool, path: Path, key: str, value: object, expected: str) -> None:
    if not condition:
        text = repr(value)
        raise InputError(f"{path}: {key} is {text[:60]}{'...' if len(text) > 60 else ''}, expected {expected}")
