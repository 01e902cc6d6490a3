"""The calibrated no-match threshold in a run folder, written by evaluation and read by search."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hgsl.common.errors import InputError
from hgsl.common.files import read_json, write_json

FILE_NAME = "no_match.json"


def write_no_match(folder: str | os.PathLike[str], calibration: Mapping[str, Any]) -> Path:
    """Writes ``calibration`` (``threshold``, ``metric`` and further entries); returns the path of the file."""
    path = Path(folder) / FILE_NAME
    write_json(path, calibration)
    return path


def read_no_match(folder: str | os.PathLike[str]) -> dict[str, Any] | None:
    """Returns the calibration that :func:`write_no_match` wrote, or None if there is none.

    Raises:
        InputError: The file is damaged, or lacks a ``threshold`` that is a number or a ``metric``.
    """
    path = Path(folder) / FILE_NAME
    if not path.is_file():
        return None
    content = read_json(path, "a calibrated threshold")
    try:
        return {**content, "threshold": float(content["threshold"]), "metric": str(content["metric"])}
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} is damaged ({type(error).__name__}: {error}): calibrate again, or give --no-match"
        ) from None
