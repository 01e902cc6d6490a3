import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import faiss
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from hgsl.common.disk import check_writable, named_disk_errors, reserve_space
from hgsl.common.files import atomic_path, write_text

NUMBERS = np.random.default_rng(0).random((100, 1000), dtype=np.float32)  # 400 kB


def write_numpy(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, NUMBERS)


def write_faiss(path: Path) -> None:
    index = faiss.IndexFlatL2(1000)
    index.add(NUMBERS)
    faiss.write_index(index, str(path))


WRITERS: dict[str, Callable[[Path], object]] = {
    "text": lambda path: path.write_text("a" * 400_000),
    "numpy": write_numpy,
    "safetensors": lambda path: save_file({"a": torch.from_numpy(NUMBERS)}, path),
    "faiss": write_faiss,
    "pillow": lambda path: Image.fromarray(NUMBERS.view(np.uint8)).save(path, "PNG"),
}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 128 KiB; the test is skipped where this user may not mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, stderr=subprocess.DEVNULL, check=False).returncode:
        pytest.skip("only root may mount a small file system, and not in every container")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def write(path: Path, writer: str) -> None:
    with atomic_path(path) as temporary:
        WRITERS[writer](temporary)


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.usefixtures("small_files")
def test_a_file_that_is_too_large_is_named_by_every_writer(tmp_path: Path, writer: str) -> None:
    write_text(tmp_path / "out", "old")
    with pytest.raises(OSError, match=r"\[Errno \d+\] (File too large|No space left on device): '.*/out'$") as caught:
        write(tmp_path / "out", writer)
    assert caught.value.filename == str(tmp_path / "out")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"out": "old"}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_names_the_file(small_disk: Path, writer: str) -> None:
    write_text(small_disk / "out", "old")
    with pytest.raises(OSError, match="No space left on device") as caught:
        write(small_disk / "out", writer)
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(small_disk / "out"))
    assert {path.name: path.read_text() for path in small_disk.iterdir()} == {"out": "old"}
    check_writable(small_disk / "out")
    (small_disk / "filling").write_bytes(b"a" * (124 << 10))
    with pytest.raises(OSError, match=r"No space left on device: '.*/more/out'"):
        check_writable(small_disk / "more/out")


def test_the_space_of_an_array_is_reserved_before_it_is_mapped(small_disk: Path) -> None:
    np.lib.format.open_memmap(small_disk / "a.npy", mode="w+", dtype=np.uint8, shape=(50_000,)).flush()
    assert (small_disk / "a.npy").stat().st_blocks * 512 < 50_000
    reserve_space(small_disk / "a.npy")
    assert (small_disk / "a.npy").stat().st_blocks * 512 >= 50_000
    assert not np.load(small_disk / "a.npy").any()
    np.lib.format.open_memmap(small_disk / "b.npy", mode="w+", dtype=np.uint8, shape=(500_000,)).flush()
    with pytest.raises(OSError, match=r"No space left on device: '.*/b\.npy'"):
        reserve_space(small_disk / "b.npy")


def test_a_read_only_disk_is_found_before_the_work(small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    for call in (check_writable, lambda path: write_text(path, "a")):
        with pytest.raises(OSError, match=r"Read-only file system: '.*/out'"):
            call(small_disk / "out")


def test_a_folder_without_permission_is_found_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "some/temporary/name")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)  # permissions do not bind root
    with pytest.raises(PermissionError) as caught:
        check_writable(tmp_path / "a/b/out")
    assert caught.value.filename == str(tmp_path / "a/b/out")


def test_check_writable_covers_files_folders_and_sizes_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "new", tmp_path / "new/er/out", tmp_path / "file"):
        check_writable(path)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    with pytest.raises(NotADirectoryError, match="file/out"):
        check_writable(tmp_path / "file/out")
    with pytest.raises(OSError, match=r"No space left on device \([\d,]+ bytes are free, 1,152,921"):
        check_writable(tmp_path / "out", size=2**60)


@pytest.mark.parametrize("error", [OSError("image file is truncated"), KeyError("a"), FileNotFoundError(2, "no", "x")])
def test_errors_of_other_causes_stay_as_they_are(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, named_disk_errors("out"):
        raise error
    assert caught.value is error
