"""Safetensors files: tensors, and text in the metadata; nothing is unpickled."""

from collections.abc import Mapping
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from hgsl.common.files import atomic_path


def write_tensor_file(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Writes tensors on any device, atomically; safetensors does not allow tensors that share memory.

    Raises:
        OSError: The folder cannot be written or the disk is full; the previous file, if any, is untouched.
    """
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_path(path) as temporary:
        save_file(contiguous, temporary, metadata=dict(metadata))


def read_tensor_file(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Reads all tensors onto the CPU, and the metadata of the header.

    Raises:
        FileNotFoundError: There is no such file.
        SafetensorError: It is damaged, or of another format.
    """
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118 (no dict)
