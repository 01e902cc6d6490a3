from pathlib import Path

import pytest
import torch

from hgsl.common.errors import InputError
from hgsl.engine.folder.checkpoint import load_state, save_state


def test_round_trip_of_an_optimizer(tmp_path: Path) -> None:
    weights = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(weights.parameters())
    weights(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    state = {"optimizer": optimizer.state_dict(), "step": 7, "none": None, "flag": True, "rng": torch.get_rng_state()}
    save_state(tmp_path / "state.safetensors", state)
    loaded = load_state(tmp_path / "state.safetensors")
    assert loaded["step"] == 7
    assert loaded["none"] is None
    assert loaded["flag"] is True
    assert torch.equal(loaded["rng"], state["rng"])
    assert set(loaded["optimizer"]["state"]) == {0, 1}  # integers, not strings
    torch.testing.assert_close(loaded["optimizer"]["state"][0], state["optimizer"]["state"][0], rtol=0, atol=0)
    torch.optim.AdamW(weights.parameters()).load_state_dict(loaded["optimizer"])


def test_tensors_that_share_memory_are_saved(tmp_path: Path) -> None:
    weight = torch.arange(6.0)
    save_state(tmp_path / "s.safetensors", {"a": weight, "b": weight[::2]})
    assert load_state(tmp_path / "s.safetensors")["b"].tolist() == [0, 2, 4]


def test_only_plain_values(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="cannot save a set"):
        save_state(tmp_path / "s.safetensors", {"x": {1, 2}})


@pytest.mark.parametrize("content", [b"", b"\xff" * 16, (2**60).to_bytes(8, "little") + b"{}"])
def test_damaged_files(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "state.safetensors"
    path.write_bytes(content)
    with pytest.raises(InputError, match="is damaged or was not written by hgsl"):
        load_state(path)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no state to resume from"):
        load_state(tmp_path / "state.safetensors")


def test_a_full_disk_keeps_the_old_state(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    save_state(path, {"step": 1})
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    import signal

    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(OSError, match="state"):
            save_state(path, {"step": 2, "big": torch.zeros(10_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert load_state(path)["step"] == 1
    assert [file.name for file in tmp_path.iterdir()] == ["state.safetensors"]
