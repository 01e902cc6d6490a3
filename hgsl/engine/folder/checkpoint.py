"""State files: everything that resuming needs in one safetensors file, with JSON in its metadata for non-tensors.

One file is written atomically, so its tensors and its step always match. Nothing is unpickled.
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from hgsl.common.errors import InputError
from hgsl.common.files import atomic_path
from hgsl.common.tensor_files import read_tensor_file, write_tensor_file

_KEY = "hgsl"


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Writes nested dictionaries and lists of tensors, numbers, strings, booleans and None, atomically.

    Raises:
        OSError: The folder cannot be written or the disk is full; the previous file, if any, is untouched.
    """
    tensors: dict[str, Tensor] = {}
    tree = _encode(state, "", tensors)
    write_tensor_file(path, tensors, {_KEY: json.dumps(tree)})


def keep_states(path: Path, folder: Path, step: int, count: int) -> None:
    """Keeps the state at ``path``, saved at ``step``, and the ``count - 1`` states before it in ``folder``.

    They are hard links to the files of :func:`save_state`, named after their step. States of later steps, which exist
    if the run was set back to an earlier state, are removed.
    """
    if count < 2:
        return
    folder.mkdir(exist_ok=True)
    copy = folder / f"{step:09}{path.suffix}"
    copy.unlink(missing_ok=True)
    try:
        os.link(path, copy)
    except OSError:  # a file system without links
        with atomic_path(copy) as temporary:
            shutil.copyfile(path, temporary)
    states = sorted(folder.glob(f"*{path.suffix}"))
    end = states.index(copy) + 1
    for other in [*states[: max(0, end - count)], *states[end:]]:
        other.unlink()


def load_state(path: Path) -> dict[str, Any]:
    """Reads a file of :func:`save_state`, onto the CPU.

    Raises:
        FileNotFoundError: There is no such file.
        InputError: The file is damaged or was written by something else.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"no state to resume from at {path}: the run stopped before its first save, --overwrite starts it again"
        )
    try:
        tensors, header = read_tensor_file(path)
        return _decode(json.loads(header[_KEY]), tensors)
    except (SafetensorError, KeyError, ValueError) as error:
        raise InputError(
            f"{path} is damaged or was not written by hgsl ({error}): start again with --overwrite"
        ) from None


def _encode(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        tensors[name] = value.detach().to("cpu", copy=True).contiguous()
        return {"tensor": name}
    if isinstance(value, dict):  # as pairs: an optimizer's keys are integers, which JSON would turn into strings
        return {"dict": [[key, _encode(item, f"{name}/{key}", tensors)] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        return {"list": [_encode(item, f"{name}/{i}", tensors) for i, item in enumerate(value)]}
    if value is None or isinstance(value, (bool, int, float, str)):
        return {"value": value}
    raise TypeError(f"{name}: cannot save a {type(value).__name__}")


def _decode(node: Any, tensors: Mapping[str, Tensor]) -> Any:
    ((node_type, content),) = node.items()
    if node_type == "tensor":
        return tensors[content]
    if node_type == "dict":
        return {key: _decode(item, tensors) for key, item in content}
    if node_type == "list":
        return [_decode(item, tensors) for item in content]
    return content
