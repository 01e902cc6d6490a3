from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from hgsl.common.tensor_files import read_tensor_file, write_tensor_file


def test_tensors_and_metadata_are_read_as_they_were_written(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(6.0, requires_grad=True).view(2, 3).T, "b/c": torch.tensor([], dtype=torch.bfloat16)}
    write_tensor_file(tmp_path / "new/x.safetensors", tensors, {"step": "3"})
    found, metadata = read_tensor_file(tmp_path / "new/x.safetensors")
    assert metadata == {"step": "3"}
    assert found.keys() == tensors.keys()
    torch.testing.assert_close(found["a"], tensors["a"].detach(), rtol=0, atol=0)
    assert found["b/c"].dtype == torch.bfloat16


def test_a_damaged_file_is_no_tensor_file(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"hgsl")
    with pytest.raises(SafetensorError):
        read_tensor_file(tmp_path / "x.safetensors")
    with pytest.raises(FileNotFoundError):
        read_tensor_file(tmp_path / "none")
