"""Sources of a trained model, a folder or a repository on the Hugging Face Hub, checked without importing PyTorch."""

import os
import re
from pathlib import Path

from hgsl.common.errors import InputError
from hgsl.common.paths import check_path

WEIGHTS_NAME = "model.safetensors"
RUN_NAME, HUB_NAME = "model.json", "config.json"  # the description of the model in a run folder, and in one for the Hub
MODEL_FOLDER = "model"  # in the folder of a search index
HUB_PREFIX, FOLDER_PREFIX = "hf-hub:", "local-dir:"  # as timm writes them
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")


def hub_id_of(source: str | os.PathLike[str]) -> str | None:
    """Returns the Hub id that ``source`` names, or None if it is a path.

    ``OWNER/NAME`` is a path if there is a folder ``OWNER``: a mistyped run folder is not looked up on the Hub.

    Raises:
        InputError: ``hf-hub:`` is followed by something other than ``OWNER/NAME`` or ``OWNER/NAME@REVISION``.
    """
    text = str(source)
    if text.startswith(HUB_PREFIX):
        if not _HUB_ID.fullmatch(text.removeprefix(HUB_PREFIX)):
            raise InputError(f"{text!r} is not a model id: expected {HUB_PREFIX}OWNER/NAME, @REVISION is optional")
        return text.removeprefix(HUB_PREFIX)
    if isinstance(source, str) and _HUB_ID.fullmatch(text) and not Path(text.split("/")[0]).exists():
        return text
    return None


def check_model_source(source: str | os.PathLike[str]) -> None:
    """Checks that ``source`` is a folder with a saved model, or names one on the Hub, which is not contacted.

    Raises:
        FileNotFoundError: There is no such folder, or it lacks the description or the weights of a model.
        InputError: As :func:`hub_id_of`, or ``source`` is no path, a file, or a search index.
    """
    check_path("source", source, "a run folder, or OWNER/NAME of a model on the Hub")
    folder = Path(source).expanduser()
    if hub_id_of(source) is not None:
        return
    if folder.is_file():
        raise InputError(f"{folder} is a file: name its folder, {folder.parent}")
    if not folder.is_dir():
        raise FileNotFoundError(f"no model at {folder}: expected a run folder, or OWNER/NAME of a model on the Hub")
    if not _has_description(folder) and _has_description(folder / MODEL_FOLDER):
        raise InputError(f"{folder} is a search index: name the model in it, {folder / MODEL_FOLDER}")
    for names in ((RUN_NAME, HUB_NAME), (WEIGHTS_NAME,)):
        if not any((folder / name).is_file() for name in names):
            raise FileNotFoundError(f"no {names[0]} in {folder}: expected the folder of a finished run")


def is_timm_name(source: str) -> bool:
    """Whether the source of a network is the plain name of a timm model: neither a folder, nor a path, nor a Hub id."""
    return not {"/", ":"} & set(source) and not Path(source).expanduser().exists()


def check_backbone_source(name: str) -> None:
    """Checks the form of a backbone's name with a prefix, and that the folder after ``local-dir:`` has a config.

    Raises:
        InputError: The prefix is unknown, or is followed by something other than ``OWNER/NAME``.
        FileNotFoundError: There is no such folder, or it lacks the config.
    """
    if name.startswith(HUB_PREFIX):
        hub_id_of(name)
    elif not name.startswith(FOLDER_PREFIX):
        raise InputError(
            f"backbone {name!r} is neither a model name of timm, nor {HUB_PREFIX}OWNER/NAME, nor {FOLDER_PREFIX}FOLDER"
        )
    elif not (folder := Path(name.removeprefix(FOLDER_PREFIX)).expanduser() / HUB_NAME).is_file():
        raise FileNotFoundError(f"backbone {name!r}: {folder} does not exist, which timm writes beside the weights")


def _has_description(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (RUN_NAME, HUB_NAME))


def check_repository(name: str) -> None:
    """Checks that ``name`` can be the name of a repository on the Hub.

    Raises:
        InputError: It is not ``OWNER/NAME``.
    """
    if not _HUB_ID.fullmatch(name) or "@" in name:
        raise InputError(f"{name!r} is not the name of a model on the Hub: expected OWNER/NAME")
