"""Checks of arguments that need no model and no data: they run before PyTorch is imported."""

from pathlib import Path

from hgsl.common.errors import InputError
from hgsl.search.storage.layout import LOCK, MODEL, PENDING, has_index


def check_index_folder(folder: Path) -> None:
    """Checks that a folder is an index or can become one.

    Raises:
        InputError: It is a file, or holds other files.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file: an index is a folder")
    if not folder.is_dir() or has_index(folder) or (folder / MODEL).is_dir():
        return
    files = [path.name for path in folder.iterdir() if path.name not in (LOCK, PENDING) and path.name[0] != "."]
    if files:
        raise InputError(f"{folder} holds other files ({files[0]}): name an empty or a new folder for the index")


def check_counts(batch_size: int, workers: int) -> None:
    """Checks the numbers of images per batch and of loader processes."""
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1, found {batch_size}")
    if workers < 0:
        raise InputError(f"workers must be at least 0, found {workers}")
