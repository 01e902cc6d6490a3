"""The folder store: bytes written by an update, removed rows, compaction, and IVF indexes that are not trained anew."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from hgsl.common.errors import InputError
from hgsl.search import SearchIndex
from hgsl.search.encoder import Encoder
from hgsl.search.folder import faiss_file, update


def fake_model(monkeypatch):
    """Replaces the model by one whose vectors are random, but the same for the same pixels."""

    def vectors(self, tensors):
        seeds = [int(tensor.double().sum().item() * 1000) % 2**32 for tensor in tensors]
        rows = np.stack([np.random.default_rng(seed).standard_normal(self.dimensions) for seed in seeds])
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)

    monkeypatch.setattr(Encoder, "vectors", vectors)


def sizes(folder):
    """Name -> (size, modification time) of the files that grow with the index."""
    return {path.name: path.stat().st_size for path in folder.iterdir() if path.is_file() and path.name != ".lock"}


def bytes_of_an_update(folder, before, after):
    """The bytes that an update has written: growth of files that existed, and the whole of others and of index.json."""
    written = 0
    for name, size in after.items():
        written += size - before[name] if name in before and name != "index.json" else size
    return written


def without_numbers(results):
    return [[hit._replace(id=0) for hit in hits] for hits in results]


def test_a_new_image_costs_the_bytes_of_an_image_whatever_the_size_of_the_index(build, tmp_path, run, monkeypatch):
    fake_model(monkeypatch)
    written = {}
    for count in (10, 160):
        photos, folder = tmp_path / f"photos{count}", tmp_path / f"index{count}"
        photos.mkdir()
        for number in range(count):
            Image.new("RGB", (8, 8), (number, 255 - number, 9)).save(photos / f"{number:03}.png")
        build(folder, photos, checkpoint=run)
        before = sizes(folder)
        inode = (folder / "embeddings.1.npy").stat().st_ino
        Image.new("RGB", (8, 8), "red").save(photos / "new.png")
        (photos / "005.png").unlink()
        build(folder, photos)
        after = sizes(folder)
        assert before.keys() == after.keys()
        assert (folder / "embeddings.1.npy").stat().st_ino == inode
        assert after["embeddings.1.npy"] - before["embeddings.1.npy"] == 4 * 16
        written[count] = bytes_of_an_update(folder, before, after)
        assert len(SearchIndex.open(folder)) == count
    assert abs(written[160] - written[10]) < 20  # digits of the counts


def test_an_image_keeps_its_number_until_it_changes(build, tmp_path, run, photos, monkeypatch):
    folder = tmp_path / "index"
    build(folder, photos, checkpoint=run)
    (photos / "kind_00/00.jpg").unlink()
    Image.new("RGB", (60, 50), "red").save(photos / "kind_00/0.jpg")
    build(folder, photos)
    monkeypatch.setattr(update, "REMOVED_SHARE", -1)
    (photos / "kind_00/01.jpg").unlink()
    build(folder, photos)  # writes new files
    index = SearchIndex.open(folder)
    assert 0 not in index
    assert 1 not in index
    assert index.image(2).path == "kind_00/02.jpg"
    assert index.image(24).path == "kind_00/0.jpg"
    assert index.record["rows"] == 23


def test_searches_leave_out_removed_images(build, tmp_path, run, photos, monkeypatch):
    fake_model(monkeypatch)
    folder = tmp_path / "index"
    build(folder, photos, checkpoint=run)
    removed = sorted(photos.glob("*/0[12].jpg"))
    for path in removed:
        path.unlink()
    build(folder, photos)
    build(tmp_path / "new", photos, checkpoint=run)
    updated, new = SearchIndex.open(folder), SearchIndex.open(tmp_path / "new")
    assert updated.record["rows"] == 24
    queries = np.random.default_rng(0).standard_normal((9, 16)).astype(np.float32)
    for k in (1, 5, 12, 20):
        for where in (None, 'label in ["kind_01", "kind_04"]', 'label != "kind_00"'):
            results = [without_numbers(index.search(queries, k, where=where)) for index in (updated, new)]
            assert results[0] == results[1]
    assert [updated.image(number).path for number in updated.spread(5)] == [new.image(n).path for n in new.spread(5)]


def test_many_removed_rows_are_dropped_by_the_next_update(build, tmp_path, run, photos):
    folder = tmp_path / "index"
    build(folder, photos, checkpoint=run)
    opened = SearchIndex.open(folder)
    shutil.rmtree(photos / "kind_00")
    shutil.rmtree(photos / "kind_01")
    assert build(folder, photos).record["rows"] == 24
    report = build(folder, photos)  # nothing has changed, but a third of the rows are removed ones
    assert (report.record["rows"], report.images, report.unchanged) == (16, 16, 16)
    assert sorted(path.name for path in folder.glob("*.[0-9].*")) == ["embeddings.2.npy", "images.2.jsonl"]
    assert build(folder, photos).record == report.record
    assert opened.similar(0, 3)[0].similarity <= 1  # an open index keeps its state
    assert len(opened) == 24


def test_a_new_label_copies_the_vector(build, tmp_path, run, photos, counted):
    table = tmp_path / "labels.csv"
    table.write_text("path,label,year\nkind_00/00.jpg,rose,2019\nkind_01/00.jpg,oak,\n")
    folder = tmp_path / "index"
    build(folder, photos, checkpoint=run, labels=table)
    [vector] = [SearchIndex.open(folder).vector(0)]
    counted.clear()
    table.write_text("path,label,year\nkind_00/00.jpg,tulip,2021\nkind_01/00.jpg,oak,\n")
    report = build(folder, photos)
    assert counted == []
    assert report.unchanged == 24
    index = SearchIndex.open(folder)
    assert index.labels == {"tulip": 1, "oak": 1}
    [[hit]] = index.search(vector, 1, where="year >= 2020")
    assert (hit.path, hit.label, hit.similarity) == ("kind_00/00.jpg", "tulip", pytest.approx(1))
    assert index.count(index.condition("year < 2020")) == 0
    assert index.count(index.condition("not year >= 2020")) == 23


def test_an_ivf_index_is_not_trained_anew(build, tmp_path, run, photos, monkeypatch):
    fake_model(monkeypatch)
    folder = tmp_path / "index"
    report = build(folder, photos, checkpoint=run, faiss="IVF4,Flat nprobe=4")
    assert "finds 100.0% of the 10 nearest images of 24 images" in report.notes[0]
    with monkeypatch.context() as context:
        context.setattr(faiss_file, "train", lambda *_: pytest.fail("trained anew"))
        before = sizes(folder)
        Image.new("RGB", (60, 50), "red").save(photos / "kind_01/new.jpg")
        (photos / "kind_02/00.jpg").unlink()
        build(folder, photos)
        assert sizes(folder)["vectors.2.faiss"] == before["vectors.2.faiss"]
        build(tmp_path / "flat", photos, checkpoint=run)
        index, flat = SearchIndex.open(folder), SearchIndex.open(tmp_path / "flat")
        for number in flat.spread(24):
            hits, expected = index.search(flat.vector(number), 7)[0], flat.search(flat.vector(number), 7)[0]
            assert [hit.path for hit in hits] == [hit.path for hit in expected]
        for number in range(30):
            Image.new("RGB", (60, 50), (number, 9, 99)).save(photos / f"kind_01/more{number}.jpg")
        report = build(folder, photos)
        assert any("should be trained again" in note and "24 images and holds 54" in note for note in report.notes)
        assert report.record["files"]["vectors_rows"] == report.record["rows"]  # many were missing in the file
    report = build(folder, photos, retrain=True)
    assert not any("should be trained again" in note for note in report.notes)
    assert json.loads((folder / "index.json").read_text())["trained"]["images"] == 54
    with pytest.raises(InputError, match=r"--retrain trains an approximate index anew, and .*flat is exact \(Flat\)"):
        build(tmp_path / "flat", photos, retrain=True)
