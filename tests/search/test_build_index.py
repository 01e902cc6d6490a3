"""Construction and update of an index: new, changed, deleted and broken images, labels, thresholds, models."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

from hgsl.common.errors import InputError
from hgsl.models import load_embedder
from hgsl.search import SearchIndex
from hgsl.search.encoder import Encoder
from hgsl.search.folder import update


def vectors_of(folder):
    """Path -> vector, read without hgsl."""
    record = json.loads((folder / "index.json").read_text())
    lines = (folder / record["files"]["images"]).read_bytes()[: record["bytes"]].splitlines()
    vectors = np.load(folder / record["files"]["embeddings"], allow_pickle=False)
    paths = [path for line in lines for path in json.loads(line).get("paths", [])]
    removed = {row for line in lines for row in json.loads(line).get("removed", [])}
    assert len(paths) == len(vectors) == record["rows"]
    return {paths[row]: vectors[row] for row in range(len(paths)) if row not in removed}


def test_every_image_has_the_vector_of_the_model(build, tmp_path, run, photos):
    report = build(tmp_path / "index", photos, checkpoint=run, batch_size=5)
    assert (report.images, report.new, report.dropped) == (24, 24, 0)
    encoder = Encoder(load_embedder(run), device=torch.device("cpu"))
    for path, vector in vectors_of(tmp_path / "index").items():
        np.testing.assert_allclose(vector, encoder.vectors([encoder.read(photos / path)])[0], atol=1e-6)
        assert abs(np.linalg.norm(vector) - 1) < 1e-5


def test_only_changed_images_are_embedded_and_deleted_ones_are_dropped(build, tmp_path, run, photos, counted):
    folder = tmp_path / "index"
    build(folder, photos, checkpoint=run)
    before, opened = vectors_of(folder), SearchIndex.open(folder)
    (photos / "kind_00/00.jpg").unlink()
    Image.new("RGB", (60, 50), "red").save(photos / "kind_01/01.jpg")
    Image.new("RGB", (60, 50), "blue").save(photos / "kind_09.jpg")
    counted.clear()
    report = build(folder, photos)
    assert (report.new, report.changed, report.unchanged, report.dropped) == (1, 1, 22, 1)
    assert sum(counted) == 2
    after = vectors_of(folder)
    assert after.keys() == before.keys() - {"kind_00/00.jpg"} | {"kind_09.jpg"}
    different = {path for path in before.keys() & after.keys() if not np.array_equal(before[path], after[path])}
    assert different == {"kind_01/01.jpg"}
    # An index that is open keeps its snapshot, and no file of that is left in the folder.
    assert opened.similar(0, k=3)[0].similarity <= 1
    assert len(list(folder.glob("embeddings.*"))) == 1


def test_another_image_folder_is_noted(build, tmp_path, run, photos):
    build(tmp_path / "index", photos, checkpoint=run)
    moved = photos.rename(tmp_path / "moved")
    assert build(tmp_path / "index", moved).notes == []  # with the same images
    [note] = build(tmp_path / "index", moved / "kind_01").notes
    assert note.startswith(f"the index held the images of {moved}: 24 of them are not in {moved / 'kind_01'} and were ")


def test_an_unchanged_folder_writes_nothing(build, tmp_path, run, photos, counted):
    build(tmp_path / "index", photos, checkpoint=run)
    counted.clear()
    record = (tmp_path / "index/index.json").read_text()
    assert build(tmp_path / "index", photos, checkpoint=run).unchanged == 24
    assert counted == []
    assert (tmp_path / "index/index.json").read_text() == record


def test_another_model_is_refused(build, tmp_path, run, photos, make_run):
    build(tmp_path / "index", photos, checkpoint=run)
    with pytest.raises(InputError, match="made with another model"):
        build(tmp_path / "index", photos, checkpoint=make_run("other", seed=1))
    with pytest.raises(InputError, match="give the trained model with --checkpoint"):
        build(tmp_path / "new", photos)
    # A model that was copied over the one of the index is detected too.
    for file in (tmp_path / "other").iterdir():
        (tmp_path / "index/model" / file.name).write_bytes(file.read_bytes())
    with pytest.raises(InputError, match="is not the model that embedded"):
        SearchIndex.open(tmp_path / "index").search(photos / "kind_00/00.jpg")
    with pytest.raises(InputError, match=r"is not the model that embedded .* --checkpoint"):
        build(tmp_path / "index", photos)


def test_broken_images_are_counted_named_and_skipped(build, tmp_path, run, photos, counted):
    (photos / "kind_00/cut.jpg").write_bytes((photos / "kind_00/00.jpg").read_bytes()[:300])
    (photos / "kind_00/text.png").write_text("no picture")
    (photos / "kind_00/empty.webp").touch()
    (photos / "notes.txt").write_text("not a photo")
    (photos / os.fsdecode(b"latin-\xe9.jpg")).write_bytes((photos / "kind_00/00.jpg").read_bytes())
    report = build(tmp_path / "index", photos, checkpoint=run)
    assert report.images == 24
    assert set(report.broken) == {f"kind_00/{name}" for name in ("cut.jpg", "text.png", "empty.webp")} | {
        "latin-\\xe9.jpg"
    }
    assert all(len(reason) > 5 and "\n" not in reason for reason in report.broken.values())
    assert report.other_files == {".txt": 1}
    counted.clear()
    assert build(tmp_path / "index", photos).broken == report.broken
    assert counted == []
    (photos / "kind_00/cut.jpg").write_bytes((photos / "kind_00/00.jpg").read_bytes())
    report = build(tmp_path / "index", photos)
    assert (report.images, report.changed, len(report.broken)) == (25, 1, 3)


def test_a_folder_of_broken_images_makes_no_index(build, tmp_path, run):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/a.jpg").write_text("x")
    with pytest.raises(InputError, match=r"none of the 1 images .* a\.jpg: the file is no image"):
        build(tmp_path / "index", tmp_path / "bad", checkpoint=run)


def test_an_unmounted_folder_does_not_empty_the_index(build, tmp_path, run, photos):
    build(tmp_path / "index", photos, checkpoint=run)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no images"):
        build(tmp_path / "index", tmp_path / "empty")
    assert len(SearchIndex.open(tmp_path / "index")) == 24


def test_a_folder_with_other_files_is_refused(build, tmp_path, run, photos):
    with pytest.raises(InputError, match="holds other files"):
        build(photos, photos, checkpoint=run)


def test_links_in_a_circle_are_listed_once(build, tmp_path, run, photos):
    (photos / "kind_00/back").symlink_to(photos)
    assert build(tmp_path / "index", photos, checkpoint=run).images == 24


def test_a_pipe_is_not_read(build, tmp_path, run, photos):
    os.mkfifo(photos / "kind_00/pipe.jpg")
    assert build(tmp_path / "index", photos, checkpoint=run).broken == {"kind_00/pipe.jpg": "is not a regular file"}


@pytest.mark.parametrize("line", ["", "{", "[]\n", "{}\n", "a\n", '{"model": "MODEL", "numbers": [0]}\n'])
def test_a_damaged_line_of_an_interrupted_run_is_computed_again(build, tmp_path, run, photos, line):
    fingerprint = Encoder(load_embedder(run), torch.device("cpu")).fingerprint
    folder = tmp_path / "index"
    folder.mkdir()
    (folder / "images.1.jsonl").write_text(line.replace("MODEL", fingerprint))
    assert build(folder, photos, checkpoint=run).images == 24
    assert len(SearchIndex.open(folder)) == len(vectors_of(folder)) == 24


def test_exif_orientation_is_honored(build, tmp_path, run):
    pixels = np.zeros((40, 80, 3), np.uint8)
    pixels[:, :40] = (250, 20, 20)
    pixels[:10] = (20, 20, 250)
    upright = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112] = 6  # displayed rotated by 90 degrees clockwise
    (tmp_path / "p").mkdir()
    upright.save(tmp_path / "p/upright.png")
    upright.rotate(90, expand=True).save(tmp_path / "p/turned.png", exif=exif)
    upright.rotate(90, expand=True).save(tmp_path / "p/lying.png")
    build(tmp_path / "index", tmp_path / "p", checkpoint=run)
    vectors = vectors_of(tmp_path / "index")
    np.testing.assert_allclose(vectors["turned.png"], vectors["upright.png"], atol=1e-6)
    assert not np.allclose(vectors["lying.png"], vectors["upright.png"], atol=1e-3)


def test_labels_of_a_table_are_recorded_and_replaceable(build, tmp_path, run, photos):
    table = tmp_path / "labels.csv"
    table.write_text(
        f"path,label\nkind_00/00.jpg,rose\n{photos}/kind_00/01.jpg,rose\nkind_01/00.jpg,oak\ngone.jpg,oak\n"
    )
    report = build(tmp_path / "index", photos, checkpoint=run, labels=table)
    assert SearchIndex.open(tmp_path / "index").labels == {"rose": 2, "oak": 1}
    assert "labels 1 images that are not in" in report.notes[0]
    assert "images have no label in" in report.notes[1]
    assert "such as kind_00/02.jpg: its paths are relative to" in report.notes[1]
    build(tmp_path / "index", photos)
    assert SearchIndex.open(tmp_path / "index").labels == {"rose": 2, "oak": 1}
    build(tmp_path / "index", photos, labels="folders")
    assert SearchIndex.open(tmp_path / "index").labels["kind_03"] == 4
    table.write_text("path,label,1x,a b,year\nkind_00/00.jpg,rose,1,2,3\n")
    notes = build(tmp_path / "index", photos, labels=table).notes
    assert "no search can use '1x', 'a b' of the table" in notes[1]
    table.write_text("path,label\na.jpg,rose\na.jpg,oak\n")
    with pytest.raises(InputError, match=r"line 3: a\.jpg is 'oak' here and 'rose' before"):
        build(tmp_path / "index", photos, labels=table)


def test_an_interrupted_run_resumes(build, tmp_path, run, photos, counted, monkeypatch):
    vectors = Encoder.vectors

    def interrupted(self, tensors):
        if sum(counted) == 15:
            raise KeyboardInterrupt
        return vectors(self, tensors)

    monkeypatch.setattr(Encoder, "vectors", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "index", photos, checkpoint=run, batch_size=5)
    monkeypatch.setattr(Encoder, "vectors", vectors)
    report = build(tmp_path / "index", photos, batch_size=5)
    assert (report.images, report.new, report.resumed) == (24, 24, 15)
    assert sum(counted) == 24
    build(tmp_path / "straight", photos, checkpoint=run, batch_size=5)
    straight, resumed = vectors_of(tmp_path / "straight"), vectors_of(tmp_path / "index")
    for path, vector in straight.items():
        np.testing.assert_allclose(resumed[path], vector, atol=1e-6)


@pytest.mark.slow
def test_a_killed_run_resumes_with_its_finished_work(build, tmp_path, run, photo_folder, counted):
    photos = photo_folder(classes=10, images=12, name="many")
    folder = tmp_path / "index"
    script = (
        "import sys, time; from hgsl.search import build_index; from hgsl.search.encoder import Encoder\n"
        "from hgsl.search.folder import update\n"
        "update.FLUSH_SECONDS = 0; vectors = Encoder.vectors\n"
        "def slow(self, tensors): time.sleep(0.2); return vectors(self, tensors)\n"
        "Encoder.vectors = slow\n"
        "build_index(sys.argv[1], sys.argv[2], checkpoint=sys.argv[3], device='cpu', batch_size=4, progress=False)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-c", script, folder, photos, run], env=environment)
    try:
        while _lines(folder / "images.1.jsonl") < 2 and process.poll() is None:
            time.sleep(0.02)
        with pytest.raises(InputError, match="another process is writing"):
            build(folder, photos)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    with pytest.raises(FileNotFoundError, match="interrupted"):
        SearchIndex.open(folder)
    report = build(folder, photos)
    assert report.images == 120
    assert 8 <= report.resumed < 120
    assert sum(counted) == 120 - report.resumed
    build(tmp_path / "straight", photos, checkpoint=run)
    straight, resumed = vectors_of(tmp_path / "straight"), vectors_of(folder)
    for path, vector in straight.items():
        np.testing.assert_allclose(resumed[path], vector, atol=1e-6)


def _lines(path):
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_a_failed_update_leaves_the_previous_snapshot(build, tmp_path, run, photos, monkeypatch):
    folder = tmp_path / "index"
    build(folder, photos, checkpoint=run)
    Image.new("RGB", (60, 50), "red").save(photos / "kind_01/new.jpg")

    def full(*_):
        raise OSError(28, "No space left on device")

    real = update.write_json

    def fails_at_the_record(path, value):
        if path.name == "index.json":
            full()
        real(path, value)

    monkeypatch.setattr(update, "write_json", fails_at_the_record)
    with pytest.raises(OSError, match="No space"):
        build(folder, photos)
    monkeypatch.undo()
    assert len(SearchIndex.open(folder)) == 24
    report = build(folder, photos)
    assert (report.images, report.resumed) == (25, 1)
    assert len(list(folder.glob("embeddings.*"))) == 1
