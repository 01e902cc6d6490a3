"""Failures during indexing: temporary ones leave no trace, those of the disk are detected early and name the path."""

import os
import shutil
import signal
import stat

import pytest
import torch
from PIL import Image

from hgsl.common.errors import InputError
from hgsl.search import SearchIndex, build_index
from hgsl.search.encoder import Encoder
from hgsl.search.folder.update import FolderUpdate
from hgsl.search.indexing import embedding


@pytest.mark.parametrize("name", ["embeddings.npy", "images.zip", "vectors.1.csv", "images.1.jsonl.zip"])
def test_files_that_no_index_has_written_are_neither_taken_nor_removed(build, tmp_path, run, photos, name):
    for folder in (tmp_path / "one", tmp_path / "other/model"):
        folder.mkdir(parents=True)
    (tmp_path / "one" / name).touch()
    (tmp_path / "other" / name).touch()
    for folder in (tmp_path / "one", tmp_path / "other"):
        with pytest.raises(InputError, match=rf"holds other files \({name}\)"):
            build(folder, photos, checkpoint=run)
    (tmp_path / "index/lost+found").mkdir(parents=True)
    build(tmp_path / "index", photos, checkpoint=run)
    (tmp_path / "index" / name).touch()
    (photos / "kind_00/00.jpg").unlink()
    assert build(tmp_path / "index", photos).images == 23
    assert (tmp_path / "index" / name).exists()


def test_a_first_run_that_is_interrupted_at_its_end_embeds_nothing_again(
    build, tmp_path, run, photos, counted, monkeypatch
):
    options = {"checkpoint": run, "faiss": "IVF2,Flat nprobe=2"}
    with monkeypatch.context() as context:
        context.setattr(FolderUpdate, "publish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            build(tmp_path / "index", photos, **options)
    for name in (".index.0a.partial.json", "model/.model.0a.partial.safetensors"):
        (tmp_path / "index" / name).touch()
    counted.clear()
    report = build(tmp_path / "index", photos, **options)
    assert (counted, report.images, report.resumed) == ([], 24, 24)
    assert not list((tmp_path / "index").rglob(".*.partial*"))


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (PermissionError(13, "Permission denied", "03.jpg"), "Permission denied"),
        (OSError(5, "Input/output error"), "Input/output error"),
        (MemoryError, "not enough memory"),
    ],
)
def test_an_image_is_tried_again_after_a_temporary_failure(build, tmp_path, run, photos, monkeypatch, error, reason):
    read_image = embedding.read_image

    def unreadable(path, side):
        if path.name == "03.jpg":
            raise error
        return read_image(path, side)

    monkeypatch.setattr(embedding, "read_image", unreadable)
    report = build(tmp_path / "index", photos, checkpoint=run)
    assert (report.images, len(report.broken)) == (18, 6)
    assert set(report.broken.values()) == {reason}
    assert build(tmp_path / "index", photos).notes == []
    monkeypatch.undo()
    report = build(tmp_path / "index", photos)
    assert (report.images, report.unchanged, report.broken) == (24, 24, {})
    assert report.notes == ["6 images that could not be read before are in the index now"]


def test_an_interrupted_run_does_not_record_broken_images(build, tmp_path, run, photos, monkeypatch):
    read_image, vectors = embedding.read_image, Encoder.vectors
    monkeypatch.setattr(embedding, "read_image", lambda path, side: read_image(path.with_name("missing.jpg"), side))
    (tmp_path / "one").mkdir()
    for name in ("a", "b"):
        shutil.copy(photos / "kind_00/00.jpg", tmp_path / f"one/{name}.jpg")
    with pytest.raises(InputError, match="none of the 2 images"):
        build(tmp_path / "index", tmp_path / "one", checkpoint=run)
    monkeypatch.undo()
    assert Encoder.vectors is vectors
    assert build(tmp_path / "index", tmp_path / "one").images == 2


def test_a_first_run_without_a_result_blocks_no_other_model(build, tmp_path, run, photos, make_run):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/a.jpg").write_text("x")
    with pytest.raises(InputError, match="none of the 1 images"):
        build(tmp_path / "index", tmp_path / "bad", checkpoint=run)
    other = make_run("other", seed=1)
    assert build(tmp_path / "index", photos, checkpoint=other).record["model"]["checkpoint"] == str(other)
    assert SearchIndex.open(tmp_path / "index").search(photos / "kind_00/00.jpg", k=1)[0][0].path == "kind_00/00.jpg"


def test_a_damaged_copy_of_the_model_is_replaced(build, tmp_path, run, photos):
    build(tmp_path / "index", photos, checkpoint=run)
    (tmp_path / "index/model/model.safetensors").write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"model\.safetensors.*: replace the copy of the model with --checkpoint RUN"):
        build(tmp_path / "index", photos)
    assert build(tmp_path / "index", photos, checkpoint=run).unchanged == 24
    assert build(tmp_path / "index", photos).unchanged == 24


def test_a_damaged_faiss_file_is_rebuilt_without_the_model(build, tmp_path, run, photos, monkeypatch):
    build(tmp_path / "index", photos, checkpoint=run, faiss="IVF2,Flat nprobe=2")
    [file] = (tmp_path / "index").glob("*.faiss")
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(InputError, match="damaged: rebuild it with hgsl-search index"):
        SearchIndex.open(tmp_path / "index")
    monkeypatch.setattr(Encoder, "vectors", lambda *_: pytest.fail("embedded again"))
    build(tmp_path / "index", photos)
    assert len(SearchIndex.open(tmp_path / "index").similar(0, 5)) == 5


def test_a_full_disk_is_found_before_any_image_is_embedded(build, tmp_path, run, photos, monkeypatch):
    monkeypatch.setattr(Encoder, "vectors", lambda *_: pytest.fail("embedded an image"))
    usage = shutil.disk_usage(tmp_path)._replace(free=5000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OSError, match="No space left on device") as caught:
        build(tmp_path / "index", photos, checkpoint=run)
    assert caught.value.filename == str(tmp_path / "index")


def test_a_disk_that_fills_up_is_named_and_loses_nothing(build, tmp_path, run, photos, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    build(tmp_path / "index", photos, checkpoint=run)
    Image.new("RGB", (60, 50), "red").save(photos / "new.jpg")
    with monkeypatch.context() as context:
        context.setattr("hgsl.search.folder.embeddings.os.fsync", full)
        with pytest.raises(OSError, match="No space left on device") as caught:
            build(tmp_path / "index", photos)
    assert str(caught.value.filename).startswith(str(tmp_path / "index/embeddings.1.npy"))
    assert len(SearchIndex.open(tmp_path / "index")) == 24
    assert build(tmp_path / "index", photos).images == 25


def test_a_wrong_faiss_factory_is_found_before_any_image_is_embedded(build, tmp_path, run, photos, monkeypatch):
    monkeypatch.setattr(Encoder, "vectors", lambda *_: pytest.fail("embedded an image"))
    for factory, message in (
        ("Nonsense", "could not parse index string Nonsense"),
        ("IVF99,Flat", "cannot be built for 24 vectors: it has 99 cells"),
        ("IVF99999999,Flat", "cannot be built for 24 vectors: it has 99999999 cells"),  # FAISS would take a minute
        ("IMI2x14,Flat", "it has 268435456 cells"),
        ("IVF2,Flat nprobe=-1", "nprobe must be at least 1"),
        ("Flat nprobe=2", "could not set parameter nprobe"),
    ):
        with pytest.raises(InputError, match=message):
            build(tmp_path / "index", photos, checkpoint=run, faiss=factory)


def test_every_file_has_the_mode_of_the_umask(build, tmp_path, run, photos):
    mask = os.umask(0o027)
    try:
        build(tmp_path / "index", photos, checkpoint=run, faiss="IVF2,Flat")
    finally:
        os.umask(mask)
    files = [path for path in (tmp_path / "index").rglob("*") if path.is_file()]
    assert {path.suffix for path in files} >= {".json", ".npy", ".faiss", ".safetensors"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o640}


def test_an_absent_device_is_found_before_images_are_listed(tmp_path, run, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="device 'cuda' is not present on this machine"):
        build_index(tmp_path / "index", tmp_path / "nowhere", checkpoint=run, device="cuda")


def test_a_killed_loader_process_is_one_line_and_its_work_is_kept(build, tmp_path, run, photos, monkeypatch):
    read_image = embedding.read_image

    def killed(path, side):
        if path.parent.name == "kind_05":
            os.kill(os.getpid(), signal.SIGKILL)
        return read_image(path, side)

    monkeypatch.setattr(embedding, "read_image", killed)
    with pytest.raises(InputError, match=r"a worker process that reads images was killed.*with fewer --workers"):
        build(tmp_path / "index", photos, checkpoint=run, workers=1, batch_size=4)
    monkeypatch.undo()
    report = build(tmp_path / "index", photos)
    assert report.images == 24
    assert report.resumed > 0


@pytest.mark.parametrize("message", ["CUDA out of memory. Tried to allocate 2 GiB", "can't allocate memory: 5 bytes"])
def test_a_batch_that_does_not_fit_in_memory_is_one_line(build, tmp_path, run, photos, monkeypatch, message):
    def forward(*_):
        raise RuntimeError(message)

    monkeypatch.setattr("hgsl.search.encoder.forward", forward)
    with pytest.raises(
        InputError, match="not enough memory on cpu for 24 images at a time: use a smaller --batch-size"
    ):
        build(tmp_path / "index", photos, checkpoint=run)
