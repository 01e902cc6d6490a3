"""Downloads from and uploads to the Hugging Face Hub, or another server with its API (``HF_ENDPOINT``)."""

from collections.abc import Sequence
from pathlib import Path

from hgsl.common.errors import InputError, first_line
from hgsl.common.model_source import check_repository

TIMEOUT = 5.0  # seconds to wait for the first response of the Hub


def fetch(hub_id: str, names: Sequence[str]) -> Path:
    """Downloads the files ``names`` of a model into the Hub's cache and returns the folder that holds them.

    Raises:
        InputError: The Hub cannot be reached and its cache lacks the model, or it has no such model, revision or file.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    repository, _, revision = hub_id.partition("@")
    offline = not is_reachable(repository, revision or None, names[0])
    try:
        paths = [
            Path(hf_hub_download(repository, name, revision=revision or None, local_files_only=offline))
            for name in names
        ]
    except LocalEntryNotFoundError:
        reason = "the Hub cannot be reached, and the model is not in its cache"
        raise InputError(f"{hub_id} is neither a local folder nor available from the Hub: {reason}") from None
    except (OSError, ValueError) as error:  # the client's own errors about the network, the model and its files
        reason = first_line(error)
        raise InputError(f"{hub_id} is neither a local folder nor available from the Hub: {reason}") from None
    return paths[0].parent


def is_reachable(repository: str, revision: str | None, name: str) -> bool:
    """Whether the Hub responds to one request for a file; a download by the client would retry for a minute."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError

    try:
        get_hf_file_metadata(hf_hub_url(repository, name, revision=revision), timeout=TIMEOUT)
    except HfHubHTTPError:  # a response, even if an error, which the download raises
        return True
    except Exception:  # the client's HTTP library has many exceptions for a missing network
        return False
    return True


def cached_file(repository: str, names: Sequence[str]) -> str | None:
    """Returns the path of the first file of ``names`` in the Hub's cache, or None."""
    from huggingface_hub import try_to_load_from_cache

    name, _, revision = repository.partition("@")
    paths = (try_to_load_from_cache(name, file, revision=revision or None) for file in names)
    return next((path for path in paths if isinstance(path, str)), None)


def upload(folder: Path, repository: str, *, private: bool, token: str | None, message: str) -> str:
    """Creates the repository if it is missing, uploads the files of ``folder`` in one commit, returns the URL.

    Raises:
        InputError: The name is not ``OWNER/NAME``, or the Hub cannot be reached or refuses.
    """
    from huggingface_hub import HfApi

    check_repository(repository)
    api = HfApi(token=token, library_name="hgsl")
    try:
        url = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(folder_path=folder, repo_id=repository, commit_message=message)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot upload to {repository}: {first_line(error)}") from None
    return str(url)
