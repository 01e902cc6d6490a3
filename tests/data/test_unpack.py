"""Unpacking of well-formed, hostile and damaged archives."""

import gzip
import io
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest

from hgsl.common.errors import InputError
from hgsl.data.files.unpack import unpack

FILES = {"set/a/1.jpg": b"one", "set/a/2.jpg": b"two", "set/list.txt": b"list", "readme": b"read"}


def make_tar(path: Path, files: dict[str, bytes], mode: str = "w:gz", **special: tarfile.TarInfo) -> Path:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        for info in special.values():
            tar.addfile(info)
    return path


def make_zip(path: Path, files: dict[str, bytes], link: str | None = None) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
        if link:
            info = zipfile.ZipInfo(link)
            info.external_attr = (stat.S_IFLNK | 0o777) << 16
            archive.writestr(info, "/etc")
    return path


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


def files_in(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz", "zip"])
def test_every_file_is_unpacked(root: Path, mode: str) -> None:
    archive = root.parent / "archive"
    make_zip(archive, FILES | {"empty/": b""}) if mode == "zip" else make_tar(archive, FILES, mode)
    tops = unpack(archive, root)
    assert files_in(root) == FILES
    assert {path.name for path in tops} == {"set", "readme"} | ({"empty"} if mode == "zip" else set())
    assert all(not path.name.startswith(".unpack") for path in root.iterdir())


HOSTILE_TARS = {
    "climbs": ({"../evil": b"x"}, {}),
    "climbs inside": ({"set/../../evil": b"x"}, {}),
    "absolute": ({"/tmp/evil": b"x"}, {}),
    "backslash": ({"..\\evil": b"x"}, {}),
    "link out": (FILES, {"a": special("set/out", tarfile.SYMTYPE, "/etc")}),
    "link in": (FILES, {"a": special("set/in", tarfile.SYMTYPE, "a/1.jpg")}),
    "hard link": (FILES, {"a": special("set/hard", tarfile.LNKTYPE, "set/a/1.jpg")}),
    "device": (FILES, {"a": special("set/null", tarfile.CHRTYPE)}),
    "pipe": (FILES, {"a": special("set/pipe", tarfile.FIFOTYPE)}),
}


@pytest.mark.parametrize("case", HOSTILE_TARS)
def test_hostile_tars_leave_nothing(root: Path, case: str) -> None:
    files, others = HOSTILE_TARS[case]
    archive = make_tar(root.parent / "a.tgz", files, **others)
    with pytest.raises(InputError, match="it is refused as a whole") as caught:
        unpack(archive, root)
    assert "\n" not in str(caught.value)
    assert list(root.iterdir()) == []
    assert {path.name for path in root.parent.iterdir()} == {"root", "a.tgz"}


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "set/../../evil"])
def test_hostile_zips_leave_nothing(root: Path, name: str) -> None:
    with pytest.raises(InputError, match="leads outside"):
        unpack(make_zip(root.parent / "a.zip", FILES | {name: b"x"}), root)
    with pytest.raises(InputError, match="a link or a device"):
        unpack(make_zip(root.parent / "b.zip", FILES, link="set/link"), root)
    assert list(root.iterdir()) == []


def test_a_decompression_bomb_is_stopped_while_it_unpacks(root: Path) -> None:
    zeros = b"\0" * (80 << 20)
    for archive in (
        make_zip(root.parent / "bomb.zip", {"a": zeros}),
        make_tar(root.parent / "bomb.tgz", {"a": zeros[: 40 << 20], "b": zeros[: 40 << 20]}),
    ):
        assert archive.stat().st_size < 1 << 20
        with pytest.raises(InputError, match=r"holds more than [\d,]+ bytes"):
            unpack(archive, root)
        assert list(root.iterdir()) == []
    assert unpack(make_zip(root.parent / "fine.zip", {"a": zeros[: 1 << 20]}), root) == [root / "a"]


def test_a_zip_with_a_wrong_size(root: Path) -> None:
    archive = make_zip(root.parent / "a.zip", {"a": b"\0" * 4000})
    content = archive.read_bytes().replace((4000).to_bytes(4, "little"), (9).to_bytes(4, "little"))
    archive.write_bytes(content)
    with pytest.raises(InputError, match="cannot be unpacked"):
        unpack(archive, root)
    assert list(root.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"no archive", gzip.compress(b"no tar", mtime=0), b"PK\x03\x04 cut off"])
def test_damaged_archives(root: Path, content: bytes) -> None:
    archive = root.parent / "a.tgz"
    archive.write_bytes(content)
    with pytest.raises(InputError, match="cannot be unpacked"):
        unpack(archive, root)
    assert list(root.iterdir()) == []


def test_a_cut_archive_leaves_nothing(root: Path) -> None:
    for archive in (make_tar(root.parent / "a.tgz", FILES), make_zip(root.parent / "a.zip", FILES)):
        archive.write_bytes(archive.read_bytes()[:-40])
        with pytest.raises(InputError, match="cannot be unpacked"):
            unpack(archive, root)
    assert list(root.iterdir()) == []


def test_nothing_is_replaced(root: Path) -> None:
    (root / "readme").write_bytes(b"mine")
    with pytest.raises(InputError, match=r"would replace .*readme: move that away first"):
        unpack(make_tar(root.parent / "a.tgz", FILES), root)
    assert files_in(root) == {"readme": b"mine"}
    with pytest.raises(InputError, match=r"cannot be unpacked: .*File exists"):
        unpack(make_tar(root.parent / "twice.tar", {"a": b"1", "./a": b"2"}, "w"), root)
