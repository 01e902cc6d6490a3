import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hgsl.common.disk import check_writable
from hgsl.common.errors import InputError
from hgsl.common.files import atomic_path, walk_files, write_json, write_text


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing(tmp_path: Path) -> None:
    target = tmp_path / "report.json"
    write_text(target, "old")
    with pytest.raises(RuntimeError, match="in the middle"), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError("in the middle")
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["report.json"]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_files_have_the_mode_of_the_umask(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        with atomic_path(tmp_path / "model.safetensors") as temporary:
            save_file({"x": torch.zeros(1)}, temporary)  # which makes a private file
        write_text(tmp_path / "report.json", "{}")
    finally:
        os.umask(before)
    assert {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {
        "model.safetensors": mode,
        "report.json": mode,
    }


def test_a_write_that_fails_names_the_file(tmp_path: Path) -> None:
    target = tmp_path / "report.json"
    for filename in (None, "the temporary one"):
        with pytest.raises(OSError, match="No space left on device") as caught, atomic_path(target) as temporary:
            raise OSError(28, "No space left on device", None if filename is None else str(temporary))
        assert caught.value.filename == str(target)
    with pytest.raises(FileNotFoundError) as caught, atomic_path(target):
        (tmp_path / "source").read_bytes()
    assert caught.value.filename == str(tmp_path / "source")
    assert not os.listdir(tmp_path)


def test_folders_are_made_and_the_suffix_is_kept(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "a" / "b" / "plot.png") as temporary:
        assert temporary.suffix == ".png"
        assert temporary.parent == tmp_path / "a" / "b"
        temporary.write_bytes(b"x")
    assert (tmp_path / "a" / "b" / "plot.png").read_bytes() == b"x"


def test_a_device_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to("/dev/null")
    for path in (pipe, link):
        for write in (check_writable, lambda path: write_text(path, "x")):
            with pytest.raises(InputError, match=f"^{path} is a device or a pipe, and would be replaced: name a file$"):
                write(path)
    assert sorted(os.listdir(tmp_path)) == ["link", "pipe"]
    assert link.is_symlink()


def test_json_has_no_nan(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"é": [1, 2.5]})
    assert json.loads((tmp_path / "x.json").read_text()) == {"é": [1, 2.5]}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "x.json", {"loss": float("nan")})
    assert json.loads((tmp_path / "x.json").read_text()) == {"é": [1, 2.5]}


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("open", "shut", "lost+found", "@eaDir", "__MACOSX", ".hidden"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.jpg").touch()
    assert [path.parent.name for path in walk_files(tmp_path)] == ["open", "shut"]
    scandir = os.scandir

    def refuse(folder: str) -> object:
        if not folder.endswith("open") and folder != str(tmp_path):
            raise PermissionError(13, "Permission denied", folder)
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)  # permissions do not bind root
    with pytest.raises(InputError, match=r"shut cannot be read \(Permission denied\)"):
        list(walk_files(tmp_path))
