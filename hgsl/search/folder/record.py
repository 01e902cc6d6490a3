"""``index.json``, checked value by value; reading it imports neither PyTorch nor FAISS."""

from pathlib import Path
from typing import Any

from hgsl.common.errors import InputError
from hgsl.common.files import read_json
from hgsl.search.folder.layout import RECORD, last_number

FORMAT = 4
RECORD_TYPES = {
    **{"state": int, "root": str, "index_type": str, "columns": dict, "model": dict, "dimensions": int},
    **{"files": dict, "rows": int, "bytes": int, "next_id": int},
}  # fmt: skip
REBUILD = "rebuild it with hgsl-search index"


class FormatError(InputError):
    """An index of another format than this version reads."""


def read_record(folder: Path) -> dict[str, Any]:
    """Returns the checked contents of ``index.json``.

    Raises:
        FileNotFoundError: There is no index.
        InputError: The file is damaged or was not written by hgsl.
    """
    path = folder / RECORD
    if not path.is_file():
        interrupted = folder.is_dir() and last_number(folder) > 0
        hint = "its first run was interrupted, start it again" if interrupted else "make one with hgsl-search index"
        raise FileNotFoundError(f"no index in {folder}: {hint}")
    try:
        record = read_json(path, "the record of an index")
    except InputError as error:
        raise InputError(f"{error}: {REBUILD}") from error
    if record.get("format") != FORMAT:
        raise FormatError(
            f"{path} has format {record.get('format')}, this version of hgsl reads {FORMAT}: name a new folder for the "
            "index, or remove this one and run hgsl-search index again"
        )
    for key, expected in RECORD_TYPES.items():
        if not isinstance(record.get(key), expected):
            raise InputError(f"{path} has no usable {key!r}: it was not written by hgsl or has been modified since")
    no_match = record.get("no_match")
    if no_match is not None and not (
        isinstance(no_match, dict) and isinstance(no_match.get("threshold", 0), float | None)
    ):
        raise InputError(f"{path} has no usable threshold in 'no_match': give one with hgsl-search index --no-match")
    return record


def check_file_name(name: Any) -> str:
    """Checks that a name in ``index.json`` is that of a file in the same folder, and returns it.

    Raises:
        InputError: It is not a plain file name.
    """
    if not isinstance(name, str) or not name or name != Path(name).name:
        raise InputError(f"{RECORD} names the file {name!r}, expected one beside it: it was tampered with")
    return name
