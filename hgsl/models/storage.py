"""A trained model on disk: ``model.safetensors`` and, beside it, ``model.json`` that says how to build it."""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from hgsl.common.errors import InputError
from hgsl.common.files import atomic_path, write_json
from hgsl.models.embedder import Embedder, create_embedder
from hgsl.models.weights import read_tensors

WEIGHTS_NAME = "model.safetensors"
CONFIG_NAME = "model.json"


def save_embedder(model: Embedder, folder: str | Path, *, image_size: int) -> None:
    """Writes ``model.safetensors`` and ``model.json`` into ``folder``, each atomically.

    Args:
        model: What :func:`create_embedder` returned, trained or not.
        folder: Made if it is missing.
        image_size: Side in pixels of the images it was trained for; readers resize to it.
    """
    folder = Path(folder)
    tensors = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    with atomic_path(folder / WEIGHTS_NAME) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})
    description = {"architecture": model.architecture, "image_size": image_size, "preprocessing": model.data_config}
    write_json(folder / CONFIG_NAME, description)


def load_embedder(folder: str | Path) -> tuple[Embedder, int]:
    """Rebuilds the model that :func:`save_embedder` wrote.

    Returns:
        The model, in evaluation mode on the CPU, and the image size it was trained for.

    Raises:
        FileNotFoundError: The folder or one of its two files is missing.
        InputError: A file is damaged, or the tensors are of another shape than ``model.json`` says.
    """
    folder = Path(folder)
    description = read_description(folder)
    model = create_embedder(weights="none", **description["architecture"])
    tensors = read_tensors(folder / WEIGHTS_NAME)
    wanted = model.state_dict()
    for key in sorted(wanted.keys() | tensors.keys()):
        found = tuple(tensors[key].shape) if key in tensors else "missing"
        expected = tuple(wanted[key].shape) if key in wanted else "absent"
        if found != expected:
            raise InputError(
                f"{folder / WEIGHTS_NAME} does not fit {CONFIG_NAME} beside it: {key!r} is {found}, expected {expected}"
            )
    model.load_state_dict(tensors)
    model.data_config.update(description["preprocessing"])
    return model.eval(), description["image_size"]


def read_description(folder: Path) -> dict[str, Any]:
    """Reads and checks ``model.json``."""
    path = folder / CONFIG_NAME
    if not path.is_file():
        raise FileNotFoundError(f"no {CONFIG_NAME} in {folder}: expected a run folder that training has written")
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON ({error}): it was damaged after it was written") from None
    missing = {"architecture", "image_size", "preprocessing"} - set(description)
    if missing:
        raise InputError(f"{path} lacks {', '.join(sorted(missing))}: it was not written by hgsl")
    return description
