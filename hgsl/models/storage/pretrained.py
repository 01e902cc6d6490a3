"""Models for publication: ``config.json``, ``model.safetensors`` and a model card, in a folder or on the Hub."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hgsl.common.disk import check_writable
from hgsl.common.errors import InputError
from hgsl.common.files import read_json, write_json, write_text
from hgsl.common.model_source import HUB_NAME, WEIGHTS_NAME, check_repository
from hgsl.common.paths import check_path
from hgsl.models.embedder import Embedder
from hgsl.models.storage.checkpoint import save_weights
from hgsl.models.storage.description import check_embedder, describe_model, from_hub_config, to_hub_config
from hgsl.models.storage.hub import upload
from hgsl.models.storage.model_card import model_card
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

    Names and keys are those of timm and the Hub, so that the folder can be uploaded as it is;
    :func:`hgsl.load_embedder` loads it from disk or from the Hub.

    Args:
        model: Returned by ``create_embedder`` or ``load_embedder``.
        folder: Created if it is missing; one that an earlier call wrote is overwritten.
        report: The report of the run (``report.json``): the card states its scores, protocol and split hash.
        name: Title of the card: ``OWNER/NAME`` for the Hub. None takes the name of the folder.
        license: License of the weights by its Hub name, such as ``apache-2.0``. None states no license, since it
            depends on the training images and on the pretrained weights of the backbone.

    Raises:
        InputError: ``model`` is no embedder, or the folder holds files that no earlier call wrote.
        OSError: The folder cannot be written, or the disk is full.
    """
    check_embedder(model)
    check_path("folder", folder)
    folder = Path(folder)
    check_free(folder)
    check_writable(folder / WEIGHTS_NAME)
    description = describe_model(model)
    save_weights(model, folder / WEIGHTS_NAME)
    write_json(folder / HUB_NAME, to_hub_config(description, model.embedding_size, __version__))
    card = model_card(name or folder.resolve().name, description, model.embedding_size, report, license)
    write_text(folder / "README.md", card)


def check_free(folder: Path) -> None:
    """Checks that writing ``folder`` overwrites nothing else: it is missing, empty, or from an earlier call.

    Hidden files are ignored: a clone of a Hub repository has some.

    Raises:
        InputError: It is a file, or holds other files.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise InputError(f"{folder} is a file: name a folder for the model")
    file_names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    if file_names and not _is_hub_config(folder / HUB_NAME):
        raise InputError(f"{folder} holds other files ({file_names[0]}): name an empty or a new folder for the model")


def _is_hub_config(path: Path) -> bool:
    try:
        from_hub_config(read_json(path, "the description of a model"), path)
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
    """Uploads the files of :func:`save_pretrained` to the Hugging Face Hub, in one commit.

    Args:
        model: As in :func:`save_pretrained`.
        repository: ``OWNER/NAME``; created if it is missing.
        report: As in :func:`save_pretrained`.
        license: As in :func:`save_pretrained`.
        private: Whether a new repository is private.
        token: A token with write access; None takes that of ``hf auth login``.

    Returns:
        The URL of the repository.

    Raises:
        InputError: The name is not ``OWNER/NAME``, or the Hub cannot be reached or refuses.
    """
    check_repository(repository)
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(model, folder, report=report, name=repository, license=license)
        message = f"Upload an embedder of hgsl {__version__}"
        return upload(Path(folder), repository, private=private, token=token, message=message)
