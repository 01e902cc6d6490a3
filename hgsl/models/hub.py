"""Models on the Hugging Face Hub, or on another server that speaks its protocol (``HF_ENDPOINT``)."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from hgsl.common.errors import InputError, first_line

PREFIX = "hf-hub:"  # as timm writes it
_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")


def hub_id_of(source: str | os.PathLike[str]) -> str | None:
    """The Hub id that ``source`` stands for, or None if it is a path: what exists on disk is never looked up."""
    text = str(source)
    if text.startswith(PREFIX):
        if not _ID.fullmatch(text.removeprefix(PREFIX)):
            raise InputError(f"{text!r} is no model on the Hub: expected {PREFIX}OWNER/NAME, with @REVISION if wanted")
        return text.removeprefix(PREFIX)
    if isinstance(source, str) and _ID.fullmatch(text) and not Path(text).exists():
        return text
    return None


def fetch(hub_id: str, names: Sequence[str]) -> Path:
    """Brings the files ``names`` of a model into the Hub's cache and returns the folder that holds them.

    Raises:
        InputError: The Hub cannot be reached, or has no such model, revision or file.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    repository, _, revision = hub_id.partition("@")
    offline = not _answers(repository, revision or None, names[0])
    try:
        paths = [
            Path(hf_hub_download(repository, name, revision=revision or None, local_files_only=offline))
            for name in names
        ]
    except LocalEntryNotFoundError:
        reason = "the Hub cannot be reached, and the model is not in its cache"
        raise InputError(f"no folder {hub_id}, and no model of that name to be had: {reason}") from None
    except (OSError, ValueError) as error:  # the client's own errors about the network, the model and its files
        raise InputError(f"no folder {hub_id}, and no model of that name to be had: {first_line(error)}") from None
    return paths[0].parent


def _answers(repository: str, revision: str | None, name: str) -> bool:
    """Whether there is a Hub to ask, tried once: the client's own download would try for half a minute."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError

    try:
        get_hf_file_metadata(hf_hub_url(repository, name, revision=revision))
    except HfHubHTTPError:  # an answer, if a refusal: the download will say which
        return True
    except Exception:  # the client's HTTP library has many for a network that is not there
        return False
    return True


def upload(folder: Path, repository: str, *, private: bool, token: str | None, message: str) -> str:
    """Makes the repository if it is missing, puts the files of ``folder`` there in one commit, returns its address.

    Raises:
        InputError: The Hub cannot be reached, or refuses.
    """
    from huggingface_hub import HfApi

    if not _ID.fullmatch(repository) or "@" in repository:
        raise InputError(f"{repository!r} is no name for a model on the Hub: expected OWNER/NAME")
    api = HfApi(token=token, library_name="hgsl")
    try:
        address = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(folder_path=folder, repo_id=repository, commit_message=message)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot upload to {repository}: {first_line(error)}") from None
    return str(address)
