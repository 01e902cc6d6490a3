"""The index folder on disk: FAISS files, states that change while they are read, damaged and hostile files."""

import json

import numpy as np
import pytest

from hgsl.common.errors import InputError
from hgsl.search import SearchIndex
from hgsl.search.folder import appender, reader, update
from hgsl.search.folder.table import ImageTable, sealed_line
from hgsl.search.stores.protocol import ImageFile, ImageRow


def test_faiss_factory_index(build, tmp_path, run, photos):
    build(tmp_path / "index", photos, checkpoint=run, faiss="IVF2,Flat nprobe=2")
    build(tmp_path / "flat", photos, checkpoint=run)
    approximate, flat = SearchIndex.open(tmp_path / "index"), SearchIndex.open(tmp_path / "flat")
    for photo in range(24):  # both cells are probed, so it is exact
        assert approximate.similar(photo, 5) == flat.similar(photo, 5)
    (photos / "kind_00/00.jpg").unlink()
    assert build(tmp_path / "index", photos).record["index_type"] == "IVF2,Flat nprobe=2"
    with pytest.raises(InputError, match="cannot be built for 23"):
        build(tmp_path / "index", photos, faiss="IVF4096,Flat")
    assert len(SearchIndex.open(tmp_path / "index")) == 23
    [file] = (tmp_path / "index").glob("*.faiss")
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(InputError, match="damaged"):
        SearchIndex.open(tmp_path / "index")


def seal(folder):
    """Gives the lines of the images file right checksums, as an attacker would."""
    record = json.loads((folder / "index.json").read_text())
    lines = [json.loads(line) for line in (folder / record["files"]["images"]).read_bytes().splitlines()]
    content = b"".join(sealed_line({key: line[key] for key in line if key != "sha256"}) for line in lines)
    (folder / record["files"]["images"]).write_bytes(content)
    (folder / "index.json").write_text(json.dumps({**record, "bytes": len(content)}))


@pytest.mark.parametrize("read", ["read_embeddings", "file_checksum"])
def test_an_index_is_opened_while_it_is_updated(build, tmp_path, run, photos, monkeypatch, read):
    build(tmp_path / "index", photos, checkpoint=run, faiss="IVF2,Flat nprobe=2")
    (photos / "kind_00/00.jpg").unlink()
    real = getattr(reader, read)

    def slow(*arguments):
        monkeypatch.undo()
        monkeypatch.setattr(update, "REMOVED_SHARE", -1)  # it writes new files and removes the ones being read
        build(tmp_path / "index", photos)
        return real(*arguments)

    monkeypatch.setattr(reader, read, slow)
    assert len(SearchIndex.open(tmp_path / "index")) == 23


@pytest.mark.parametrize("file", ["images.1.jsonl", "embeddings.1.npy", "index.json"])
def test_a_damaged_index_is_named_and_rebuilt(build, tmp_path, run, photos, file, counted):
    folder = tmp_path / "index"
    build(folder, photos, checkpoint=run, no_match=0.5)
    (folder / file).write_text("{") if file == "index.json" else (folder / file).unlink()
    with pytest.raises(
        InputError, match="not valid JSON.*: rebuild it" if file == "index.json" else f"lacks {file}: rebuild it"
    ):
        SearchIndex.open(folder)
    counted.clear()
    report = build(folder, photos)
    assert sum(counted) == (0 if file == "index.json" else 24)  # without it, the rows are found in the other files
    assert "was damaged and has been rebuilt" in report.notes[0]
    assert SearchIndex.open(folder).threshold == (None if file == "index.json" else 0.5)
    assert len(list(folder.glob("embeddings.*"))) == 1


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("index.json", lambda _: "{", "not valid JSON"),
        ("index.json", lambda _: "[" * 100_000, "not valid JSON"),
        ("index.json", lambda _: "[]", "holds a JSON list: expected the record of an index"),
        ("index.json", lambda text: text.replace('"format": 4', '"format": 3'), "has format 3"),
        ("index.json", lambda text: text.replace('"root"', '"toor"'), "no usable 'root'"),
        ("index.json", lambda text: text.replace('"no_match": null', '"no_match": {}'), "no usable threshold"),
        ("index.json", lambda text: text.replace("embeddings.1.npy", "../../secret.npy"), "tampered"),
        (
            "images.1.jsonl",
            lambda text: text.replace("kind_00/00.jpg", "../../etc/passwd"),
            "not inside the image",
        ),
        ("images.1.jsonl", lambda text: text.replace("kind_00/00.jpg", "/etc/passwd"), "not inside the image"),
        ("images.1.jsonl", lambda text: text.replace('"times"', '"tims"'), "is damaged"),
        (
            "images.1.jsonl",
            lambda text: text.replace('"labels":[0,', '"labels":['),
            "24, 24, 23 rows",
        ),
    ],
)
def test_a_tampered_index_is_refused(tmp_path, index, file, change, message):
    path = tmp_path / "index" / file
    text = path.read_text()
    path.write_text(change(text))
    assert path.read_text() != text
    if file != "index.json":
        seal(tmp_path / "index")
    with pytest.raises(InputError, match=message):
        SearchIndex.open(tmp_path / "index")


@pytest.mark.parametrize("name", ["embeddings.1.npy", "images.1.jsonl", "vectors.2.faiss"])
@pytest.mark.parametrize("position", [0.5, 0.9])
def test_a_flipped_bit_is_found_and_the_index_is_rebuilt(build, tmp_path, run, photos, name, position, counted):
    folder = tmp_path / "index"
    build(folder, photos, checkpoint=run, faiss="IVF2,Flat")
    content = bytearray((folder / name).read_bytes())
    content[int(position * len(content))] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(InputError, match=f"{name} is damaged: rebuild it with hgsl-search index$"):
        SearchIndex.open(folder)
    counted.clear()
    build(folder, photos)
    assert sum(counted) == (0 if name.startswith("vectors") else 24)
    assert SearchIndex.open(folder).similar(0, 1)


@pytest.mark.parametrize("file", ["embeddings.1.npy", "images.1.jsonl"])
def test_a_damaged_line_of_an_interrupted_run_ends_what_is_resumed(tmp_path, file):
    rows = [ImageRow(ImageFile(f"{number}.jpg", 1, 1), None, {}) for number in range(4)]
    files = appender.Appender(tmp_path, appender.names_of(1), ImageTable(), 0, 2, "model")
    for part in (rows[:2], rows[2:]):
        files.add([0, 1], part, np.eye(2, dtype=np.float32))
        files.flush()
    assert appender.resumed(tmp_path, appender.names_of(1), ImageTable(), 0, "model")[0] == [0, 1, 2, 3]
    content = bytearray((tmp_path / file).read_bytes())
    content[-5] ^= 1
    (tmp_path / file).write_bytes(content)
    assert appender.resumed(tmp_path, appender.names_of(1), ImageTable(), 0, "model")[0] == [0, 1]
    assert appender.resumed(tmp_path, appender.names_of(1), ImageTable(), 0, "other")[0] == []


def test_pickled_or_cut_vectors_are_refused(tmp_path, index):
    path = tmp_path / "index/embeddings.1.npy"
    whole = path.read_bytes()
    np.save(path, np.array([{"a": 1}] * 24, dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match=r"cannot be read as \.npy .*: rebuild it with hgsl-search index$"):
        SearchIndex.open(tmp_path / "index")
    path.write_bytes(whole[:-100])
    with pytest.raises(InputError, match=r"cannot be read as \.npy .*: rebuild it with hgsl-search index$"):
        SearchIndex.open(tmp_path / "index")
    np.save(path, np.ones((3, 16), np.float32))
    with pytest.raises(InputError, match="3 vectors for 24 images"):
        SearchIndex.open(tmp_path / "index")
