"""Index of the images at an address: the vectors of the same local files, updated, searched and shown."""

from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest

from hgsl.common import remote
from hgsl.common.errors import InputError
from hgsl.search import IndexReport, SearchIndex

Build = Callable[..., IndexReport]


@pytest.fixture
def bucket(photos: Path) -> Iterator[str]:
    system = fsspec.filesystem("memory")
    for path in photos.rglob("*.jpg"):
        system.pipe_file(f"/bucket/photos/{path.relative_to(photos).as_posix()}", path.read_bytes())
    system.pipe_file("/bucket/photos/list.txt", b"x")
    for name in (".hidden.jpg", ".hidden/1.jpg", "@eaDir/1.jpg"):
        system.pipe_file(f"/bucket/photos/{name}", b"x")
    yield "memory://bucket/photos"
    system.rm("/bucket", recursive=True)


def test_an_address_gives_the_index_of_the_local_folder(
    build: Build, tmp_path: Path, run: Path, photos: Path, bucket: str
) -> None:
    local = SearchIndex.open(build(tmp_path / "local", photos, checkpoint=run) and tmp_path / "local")
    report = build(tmp_path / "index", bucket, checkpoint=run)
    assert (report.images, report.new, dict(report.other_files)) == (24, 24, {".txt": 1})
    index = SearchIndex.open(tmp_path / "index")
    assert index.root == bucket
    assert index.labels == local.labels
    assert all(np.array_equal(index.vector(number), local.vector(number)) for number in range(24))
    query = f"{bucket}/{index.image(5).path}"
    assert index.search(query, k=3)[0] == local.search(photos / local.image(5).path, k=3)[0]


def test_new_changed_deleted_and_broken_images_are_noticed(
    build: Build, tmp_path: Path, run: Path, bucket: str
) -> None:
    build(tmp_path / "index", bucket, checkpoint=run)
    system = fsspec.filesystem("memory")
    content = system.cat_file("/bucket/photos/kind_00/00.jpg")
    system.pipe_file("/bucket/photos/kind_00/new.jpg", content)
    system.pipe_file("/bucket/photos/kind_00/01.jpg", b"<html>")
    system.rm_file("/bucket/photos/kind_00/02.jpg")
    report = build(tmp_path / "index", bucket)
    assert (report.new, report.unchanged, report.images) == (1, 22, 23)
    assert report.broken == {"kind_00/01.jpg": "the file is no image, or of an unsupported format"}
    with pytest.raises(InputError, match=r"memory://bucket/photos/kind_00/02.jpg does not exist"):
        SearchIndex.open(tmp_path / "index").search(f"{bucket}/kind_00/02.jpg")


def test_an_unreachable_address_or_one_with_a_password_is_refused(
    build: Build, tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(FileNotFoundError, match="memory://none"):
        build(tmp_path / "index", "memory://none", checkpoint=run)
    with pytest.raises(
        InputError, match=r"--images: the address https://host/photos was given with a password"
    ) as error:
        build(tmp_path / "index", "https://me:s3cret@host/photos", checkpoint=run)
    assert "s3cret" not in str(error.value)
    monkeypatch.setattr(remote, "find_spec", lambda _: None)
    with pytest.raises(InputError, match="s3:// needs s3fs"):
        build(tmp_path / "index", "s3://bucket/photos", checkpoint=run)


def test_the_server_shows_images_of_the_index_and_fetches_no_address_of_a_client(
    build: Build, tmp_path: Path, run: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("fastapi", reason="extra [serve] is not installed")
    testclient = pytest.importorskip("fastapi.testclient")
    from hgsl.search.web.app import create_app

    build(tmp_path / "index", bucket, checkpoint=run)
    index = SearchIndex.open(tmp_path / "index", device="cpu")
    with testclient.TestClient(create_app(index), base_url="http://127.0.0.1") as client:
        shown = client.get("/api/images/3/jpeg?side=64")
        assert shown.status_code == 200
        assert shown.content.startswith(b"\xff\xd8")
        monkeypatch.setattr(remote, "_file_system", lambda uri: pytest.fail(f"{uri} is opened"))
        address = f"{bucket}/kind_00/00.jpg"
        assert client.post("/api/search", content=address.encode()).status_code == 415
        for path in (f"/api/images/{address}/jpeg", f"/api/images/jpeg?path={address}"):
            assert client.get(path).status_code in (404, 422)
