"""A model made ready for others: ``config.json``, ``model.safetensors`` and a model card, here or on the Hub."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hgsl.common.errors import InputError
from hgsl.common.files import read_json, write_json, write_text
from hgsl.models.description import from_hub_config, to_hub_config
from hgsl.models.embedder import Embedder
from hgsl.models.hub import upload
from hgsl.models.model_card import model_card
from hgsl.models.storage import HUB_NAME, WEIGHTS_NAME, describe, save_weights
from hgsl.version import __version__


def save_pretrained(
    model: Embedder,
    folder: str | Path,
    *,
    report: Mapping[str, Any] | None = None,
    name: str | None = None,
    license: str | None = None,
) -> None:
    """Writes ``config.json``, ``model.safetensors`` and ``README.md`` into ``folder``, each atomically.

    The names and keys are timm's and the Hub's, so that the folder can be uploaded as it is;
    :func:`hgsl.load_embedder` reads it, here or from there.

    Args:
        model: What ``create_embedder`` or ``load_embedder`` returned.
        folder: Made if it is missing; one that an earlier call wrote is written anew.
        report: The report of its run (``report.json``): the card states its scores, protocol and split hash.
        name: What the card calls the model: ``OWNER/NAME`` if it is meant for the Hub; else the folder's name.
        license: The license of the weights by its Hub name, such as ``apache-2.0``; None leaves it unsaid, for the
            training photos and the backbone's own weights decide it.

    Raises:
        InputError: The folder holds files and was not written by an earlier call, so some might be lost.
    """
    folder = Path(folder)
    _check_free(folder)
    description = describe(model)
    save_weights(model, folder / WEIGHTS_NAME)
    write_json(folder / HUB_NAME, to_hub_config(description, model.embedding_size, __version__))
    card = model_card(name or folder.resolve().name, description, model.embedding_size, report, license)
    write_text(folder / "README.md", card)


def _check_free(folder: Path) -> None:
    """Hidden files are let be: a folder cloned from the Hub has some."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise InputError(f"{folder} is a file: name a folder for the model")
    others = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    if others and not _is_ours(folder / HUB_NAME):
        raise InputError(f"{folder} holds other files ({others[0]}): name an empty or a new folder for the model")


def _is_ours(config: Path) -> bool:
    try:
        from_hub_config(read_json(config), config)
    except (OSError, InputError):
        return False
    return True


def push_to_hub(
    model: Embedder,
    repository: str,
    *,
    report: Mapping[str, Any] | None = None,
    license: str | None = None,
    private: bool = False,
    token: str | None = None,
) -> str:
    """Uploads to the Hugging Face Hub, in one commit, what :func:`save_pretrained` writes.

    Args:
        model: See :func:`save_pretrained`.
        repository: ``OWNER/NAME``; made if it is missing.
        report: See :func:`save_pretrained`.
        license: See :func:`save_pretrained`.
        private: Whether a repository that is made here is private.
        token: A token that may write there; None takes the one of ``hf auth login``.

    Returns:
        The address of the repository.

    Raises:
        InputError: The Hub cannot be reached, or refuses.
    """
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(model, folder, report=report, name=repository, license=license)
        message = f"Upload an embedder of hgsl {__version__}"
        return upload(Path(folder), repository, private=private, token=token, message=message)
