"""Backbones by name: of timm's own list, of a model on the Hugging Face Hub, or of one in a local folder."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm

from hgsl.common.errors import InputError, first_line
from hgsl.common.model_source import FOLDER_PREFIX, HUB_NAME, HUB_PREFIX, check_backbone_source
from hgsl.common.suggestions import nearest
from hgsl.models.storage.hub import fetch

# Arguments of timm.create_model that a stored config must not set: they name files, or change what a backbone is.
RESERVED = frozenset(
    ("cache_dir", "checkpoint_path", "features_only", "in_chans", "num_classes", "pretrained", "pretrained_cfg")
)
# Entries of a config that tell where its weights are; the folder or the Hub id already tells this.
LOCATIONS = ("custom_load", "file", "hf_hub_filename", "hf_hub_id", "source", "state_dict", "url")
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")  # of timm's models on the Hub


@dataclass(frozen=True)
class BackboneSource:
    """What timm builds a backbone from.

    Attributes:
        name: As given.
        architecture: Model name of timm, which may end with the tag of its weights.
        model_args: Further arguments of its constructor.
        pretrained_cfg: Preprocessing in timm's terms; None takes that of timm.
        folder: Local folder of the weights; None if they are timm's.
        hub_id: Hub id from which the weights are downloaded into ``folder``; None where they are there.
    """

    name: str
    architecture: str
    model_args: dict[str, Any] = field(default_factory=dict)
    pretrained_cfg: dict[str, Any] | None = None
    folder: Path | None = None
    hub_id: str | None = None

    def weights_file(self) -> Path:
        """Returns the file of the weights, after a download if need be.

        Raises:
            InputError: The model has no such file, or cannot be downloaded.
        """
        assert self.folder is not None
        if self.hub_id is not None:
            return _download(self.hub_id)
        for name in WEIGHT_FILES:
            if (self.folder / name).is_file():
                return self.folder / name
        raise InputError(f"no weights in {self.folder}: expected {' or '.join(WEIGHT_FILES)}")


def resolve_backbone(name: str) -> BackboneSource:
    """Returns what timm builds the backbone ``name`` from.

    Args:
        name: A model name of timm, ``hf-hub:OWNER/NAME`` (``@REVISION`` is optional), or ``local-dir:FOLDER``, where
            the Hub's model or the folder was written by timm.

    Raises:
        InputError: There is no such model, or it is not one of timm.
        FileNotFoundError: There is no such folder.
    """
    if ":" not in name:
        check_timm_name(name)
        return BackboneSource(name, name)
    check_backbone_source(name)
    hub_id = name.removeprefix(HUB_PREFIX) if name.startswith(HUB_PREFIX) else None
    folder = fetch(hub_id, (HUB_NAME,)) if hub_id else Path(name.removeprefix(FOLDER_PREFIX)).expanduser()
    return _read_config(name, folder, hub_id)


def check_timm_name(name: str) -> None:
    """Checks that timm has a model of this name.

    Raises:
        InputError: It has none; the message names the nearest one.
    """
    if not timm.is_model(name):
        close = nearest(name, timm.list_models())
        hint = f"did you mean {close!r}? " if close else ""
        raise InputError(f"unknown backbone {name!r}: {hint}timm.list_models() lists all of them")


def check_model_args(arguments: object, source: str) -> dict[str, Any]:
    """Checks stored arguments of a timm model, which may be untrusted.

    Raises:
        InputError: They are no mapping of names to plain values, or set what is not theirs to set.
    """
    if not isinstance(arguments, Mapping) or not all(isinstance(key, str) for key in arguments):
        raise InputError(f"{source}: model_args is {arguments!r:.60}, expected an object")
    for key, value in arguments.items():
        if key in RESERVED or not _is_plain(value):
            raise InputError(f"{source}: model_args has {key}: {value!r:.60}, which is no option of a backbone")
    return dict(arguments)


def _read_config(name: str, folder: Path, hub_id: str | None) -> BackboneSource:
    path = folder / HUB_NAME
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"backbone {name!r}: {path} is not valid JSON: {first_line(error)}") from None
    content = content if isinstance(content, dict) else {}
    architecture, config = content.get("architecture"), content.get("pretrained_cfg", content)
    if not isinstance(architecture, str) or not isinstance(config, dict):
        raise InputError(f"backbone {name!r}: {path} names no architecture of timm: it is a model of another library")
    if not timm.is_model(architecture):
        raise InputError(
            f"backbone {name!r} is of architecture {architecture!r}, which timm {timm.__version__} does not have"
        )
    arguments = content.get("model_args") or {}
    if isinstance(arguments, dict):  # what timm writes beside the options
        arguments = {key: value for key, value in arguments.items() if (key, value) != ("in_chans", 3)}
        arguments.pop("num_classes", None)
    kept = {key: value for key, value in config.items() if key not in LOCATIONS}
    return BackboneSource(name, architecture, check_model_args(arguments, str(path)), kept, folder, hub_id)


def _download(hub_id: str) -> Path:
    for file in WEIGHT_FILES[:-1]:
        try:
            return fetch(hub_id, (file,)) / file
        except InputError:
            continue
    return fetch(hub_id, WEIGHT_FILES[-1:]) / WEIGHT_FILES[-1]


def _is_plain(value: object) -> bool:
    if isinstance(value, list):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, bool | int | float | str)
