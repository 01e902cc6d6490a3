"""Checksums of the files of a snapshot: every file is verified before it is read."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hgsl.common.errors import InputError
from hgsl.common.fingerprint import file_checksum, word_sum
from hgsl.search.storage.record import REBUILD, check_file_name

# File of a snapshot -> its checksum. The vectors are the largest and only read as numbers; FAISS validates little.
CHECKSUMS: dict[str, Callable[[Path], str]] = {
    "embeddings": word_sum,
    "images": file_checksum,
    "vectors": file_checksum,
}


def verified(folder: Path, record: Mapping[str, Any], name: str) -> Path:
    """Returns the path of a file of the snapshot.

    Args:
        folder: The index.
        record: The contents of ``index.json``.
        name: ``embeddings``, ``images`` or ``vectors``.

    Raises:
        FileNotFoundError: It does not exist.
        InputError: It differs from the one that was written.
    """
    path = folder / check_file_name(record["files"].get(name))
    if CHECKSUMS[name](path) != record["checksums"].get(name):
        raise InputError(f"{path} is damaged: {REBUILD}")
    return path
