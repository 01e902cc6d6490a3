"""An index filled from parts of embeddings: in a folder and in Milvus, with damaged, repeated and foreign parts."""

import os
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hgsl.cli import search
from hgsl.common.errors import InputError
from hgsl.data import RetrievalDataset
from hgsl.data.adapters.folder import load as load_folder
from hgsl.engine.evaluation import EvalOptions, evaluate_model
from hgsl.evaluation.parts.cluster import RayCluster
from hgsl.evaluation.parts.part import PartContent, list_parts, read_columns, read_part, write_part
from hgsl.models import load_embedder
from hgsl.search import SearchIndex
from hgsl.search.checks import check_engine
from hgsl.search.indexing import cluster
from tests.helpers import fails
from tests.search.test_build_index import vectors_of

pytest.importorskip("pyarrow", reason="pyarrow is not installed: pip install 'hgsl[parquet]'")


@pytest.fixture
def embedded(monkeypatch):
    """Embeds parts in this process, as a process of a cluster does; the number of images of each part."""
    sizes = []

    def embed_parts(parts, embedder, folder, record, ray_cluster, progress):
        embedder = pickle.loads(pickle.dumps(embedder))  # as Ray sends it
        embedder.open(torch.device("cpu"))
        for part in parts:
            sizes.append(len(part))
            write_part(part.path(folder), embedder(part.columns), record)

    monkeypatch.setattr(cluster, "embed_parts", embed_parts)
    monkeypatch.setattr("hgsl.evaluation.parts.dataset.embed_parts", embed_parts)
    monkeypatch.setattr("hgsl.search.checks.require", lambda *_: None)  # no test of this file needs Ray itself
    monkeypatch.setattr("hgsl.evaluation.parts.part.MIN_IMAGES", 8)
    return sizes


def test_parts_give_the_vectors_of_one_process(build, tmp_path, run, photos, embedded):
    (photos / "kind_01/cut.jpg").write_bytes(b"no image")
    expected = build(tmp_path / "one", photos, checkpoint=run, batch_size=4)
    report = build(tmp_path / "index", photos, checkpoint=run, batch_size=4, engine="ray", parts=tmp_path / "parts")
    assert embedded == [8, 8, 8, 1]
    assert report.broken == expected.broken
    assert list(report.broken) == ["kind_01/cut.jpg"]
    one, other = vectors_of(tmp_path / "one"), vectors_of(tmp_path / "index")
    assert list(one) == list(other)  # in the same order
    assert all(one[path].tobytes() == other[path].tobytes() for path in one)
    filled = build(tmp_path / "filled", checkpoint=run, from_embeddings=tmp_path / "parts")
    assert (filled.images, filled.record["root"]) == (24, str(photos))
    assert {path: vector.tobytes() for path, vector in vectors_of(tmp_path / "filled").items()} == {
        path: vector.tobytes() for path, vector in one.items()
    }
    hits = [
        [hit[1:] for hit in SearchIndex.open(tmp_path / name).search(photos / "kind_02/01.jpg", 5)[0]]
        for name in ("one", "filled")
    ]
    assert hits[0] == hits[1]


def test_parts_that_exist_are_skipped_and_broken_images_are_tried_again(build, tmp_path, run, photos, embedded):
    (photos / "kind_01/cut.jpg").write_bytes(b"no image")
    options = {"checkpoint": run, "batch_size": 4, "engine": "ray", "parts": tmp_path / "parts"}
    build(tmp_path / "index", photos, **options)
    [lost] = [
        path for path in list_parts(tmp_path / "parts") if "kind_00/00.jpg" in read_columns(path, ["path"])[1]["path"]
    ]
    lost.unlink()
    embedded.clear()
    report = build(tmp_path / "other", photos, **options)
    assert embedded == [8, 1]  # the lost part, and the broken image once more
    assert report.images == 24
    (photos / "kind_01/cut.jpg").unlink()
    Image.new("RGB", (60, 50), "red").save(photos / "kind_00/0.jpg")  # the first: every part would have another name
    embedded.clear()
    report = build(tmp_path / "third", photos, **options)
    assert embedded == [1]
    assert report.images == 25
    embedded.clear()
    assert build(tmp_path / "third", photos, **options).unchanged == 25
    assert embedded == []


def test_a_killed_fill_takes_the_same_parts(build, tmp_path, run, photos, embedded, monkeypatch):
    options = {"checkpoint": run, "batch_size": 4, "engine": "ray"}
    with monkeypatch.context() as context:
        context.setattr("hgsl.search.folder.update.FLUSH_SECONDS", 0)
        reads = []

        def killed(path, columns):
            reads.append(path)
            if len(reads) == 3:
                raise KeyboardInterrupt
            return read_part(path, columns)

        context.setattr("hgsl.search.indexing.stored_embeddings.read_part", killed)
        with pytest.raises(KeyboardInterrupt):
            build(tmp_path / "index", photos, **options)
    assert len(list_parts(tmp_path / "index.parts")) == 3
    embedded.clear()
    report = build(tmp_path / "index", photos, **options)
    assert embedded == []
    assert (report.images, report.resumed) == (24, 16)
    assert not (tmp_path / "index.parts").exists()  # not needed when the index is complete


def test_images_without_a_part_are_embedded_here(build, tmp_path, run, photos, embedded, counted):
    build(tmp_path / "index", photos, checkpoint=run, engine="ray", parts=tmp_path / "parts")
    Image.new("RGB", (60, 50), "red").save(photos / "kind_01/01.jpg")
    Image.new("RGB", (60, 50), "blue").save(photos / "kind_09.jpg")
    (photos / "kind_00/00.jpg").unlink()
    counted.clear()
    report = build(tmp_path / "other", photos, checkpoint=run, from_embeddings=tmp_path / "parts")
    assert sum(counted) == 2
    assert report.images == 24
    assert "kind_00/00.jpg" not in vectors_of(tmp_path / "other")


def test_of_an_image_in_several_parts_the_newest_version_is_indexed(build, tmp_path, run, photos, embedded):
    options = {"checkpoint": run, "engine": "ray", "parts": tmp_path / "parts"}
    build(tmp_path / "index", photos, **options)
    path = photos / "kind_01/01.jpg"
    Image.new("RGB", (60, 50), "red").save(path)
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 10**9))
    build(tmp_path / "index", photos, **options)
    report = build(tmp_path / "other", checkpoint=run, from_embeddings=tmp_path / "parts")
    assert report.images == 24
    assert report.notes[0].startswith("1 of the embeddings in")
    np.testing.assert_array_equal(
        vectors_of(tmp_path / "other")["kind_01/01.jpg"], vectors_of(tmp_path / "index")["kind_01/01.jpg"]
    )


def test_milvus_is_filled_too(build, tmp_path, run, photos, embedded):
    pytest.importorskip("milvus_lite", reason="milvus-lite is not installed: pip install 'hgsl[milvus]'")
    build(tmp_path / "index", photos, checkpoint=run, engine="ray", parts=tmp_path / "parts")
    report = build(str(tmp_path / "index.db"), checkpoint=run, from_embeddings=tmp_path / "parts")
    assert report.images == 24
    one, other = SearchIndex.open(tmp_path / "index"), SearchIndex.open(str(tmp_path / "index.db"))
    query = one.vector(3)
    assert [hit[1:] for hit in other.search(query, 9)[0]] == [hit[1:] for hit in one.search(query, 9)[0]]
    other.store.close()


def test_parts_of_another_model_damaged_parts_and_foreign_paths_are_refused(
    build, tmp_path, run, photos, embedded, make_run
):
    parts = tmp_path / "parts"
    build(tmp_path / "index", photos, checkpoint=run, engine="ray", parts=parts, batch_size=4)
    with pytest.raises(InputError, match=r"part-\w+\.parquet holds embeddings of another model"):
        build(tmp_path / "second", checkpoint=make_run("other", seed=1), from_embeddings=parts)
    [path, *_] = list_parts(parts)
    content = path.read_bytes()
    path.write_bytes(content[:80] + bytes([content[80] ^ 1]) + content[81:])
    with pytest.raises(InputError, match=f"{path.name} is damaged"):
        build(tmp_path / "third", checkpoint=run, from_embeddings=parts)
    path.write_bytes(content)
    record, columns, vectors = read_part(path, ("path", "size", "mtime_ns"))
    write_part(path, PartContent(columns, np.concatenate([0 * vectors[:1], vectors[1:]]), []), record)
    with pytest.raises(InputError, match=f"{path.name} has vectors that are zero or not finite"):
        build(tmp_path / "third", checkpoint=run, from_embeddings=parts)
    columns["path"][0] = "../../secret.jpg"
    write_part(path, PartContent(columns, vectors, []), record)
    with pytest.raises(InputError, match="not inside the image folder"):
        build(tmp_path / "third", checkpoint=run, from_embeddings=parts)
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match="holds no embeddings of images"):
        build(tmp_path / "third", checkpoint=run, from_embeddings=tmp_path / "none")


def test_the_parts_of_an_evaluation_fill_an_index(build, tmp_path, run, photos, embedded):
    model = load_embedder(run)
    dataset = RetrievalDataset(load_folder(photos), model.transform())
    one = EvalOptions(store=tmp_path / "one", batch_size=4, progress=False, ks=1)
    ray = replace(one, store=tmp_path / "ray", ray=RayCluster(device="cpu"))
    for options in (one, ray):
        evaluate_model(model, dataset, options)
    assert embedded == [8, 8, 8]
    for name in ("embeddings", "labels", "ids"):
        arrays = [np.load(options.store / f"{name}.npy") for options in (one, ray)]
        assert arrays[0].tobytes() == arrays[1].tobytes()
    embedded.clear()
    for path in (tmp_path / "ray").glob("*.npy"):
        path.unlink()
    evaluate_model(model, dataset, ray)
    assert embedded == []  # the arrays are assembled from the parts
    for name in ("embeddings", "labels"):  # killed while it gave the files their names
        (tmp_path / f"ray/{name}.npy").rename(tmp_path / f"ray/{name}.part.npy")
    evaluate_model(model, dataset, ray)
    assert (tmp_path / "ray/embeddings.npy").read_bytes() == (tmp_path / "one/embeddings.npy").read_bytes()
    report = build(tmp_path / "index", checkpoint=run, from_embeddings=tmp_path / "ray")
    assert report.images == 24
    np.testing.assert_array_equal(
        vectors_of(tmp_path / "index")["kind_03/02.jpg"], np.load(tmp_path / "ray/embeddings.npy")[14]
    )
    evaluate_model(model, dataset, replace(ray, store=tmp_path / "flipped", flip=True))
    with pytest.raises(InputError, match=r"of another model \(AveragedViews, not "):
        build(tmp_path / "index2", checkpoint=run, from_embeddings=tmp_path / "flipped")
    (photos / "kind_00/00.jpg").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"cannot read image .*kind_00/00\.jpg"):
        evaluate_model(model, dataset, replace(ray, store=tmp_path / "broken"))
    with pytest.raises(InputError, match="ray needs store"):
        EvalOptions(ray=RayCluster())


def test_parts_lie_beside_the_index(monkeypatch):
    monkeypatch.setattr("hgsl.search.checks.require", lambda *_: None)
    for address, parts in (("my/index", "my/index.parts"), ("my/index/", "my/index.parts"), ("a.db#b", "a.db.parts")):
        assert check_engine("ray", address, None, None, None) == Path(parts)


def test_flags_that_contradict_each_other(tmp_path, run, photos, capsys, monkeypatch):
    monkeypatch.setattr("hgsl.search.checks.require", lambda *_: None)
    index = ["index", "--checkpoint", str(run), "--out", str(tmp_path / "index"), "--device", "cpu"]
    images = [*index, "--images", str(photos)]
    for words, message in (
        (index, "--images DIR, or --from-embeddings PARTS"),
        ([*index, "--from-embeddings", "nowhere"], "no folder nowhere"),
        ([*images, "--address", "auto"], "--address has no effect without --engine ray"),
        ([*images, "--parts", "x"], "--parts has no effect without --engine ray"),
        ([*images, "--engine", "ray", "--from-embeddings", str(photos)], "not as --from-embeddings"),
    ):
        assert message in fails(search.main, words, capsys)
    words = ["index", "--images", str(photos), "--checkpoint", str(run), "--engine", "ray"]
    monkeypatch.setattr("hgsl.cli.search.require", lambda *_: None)
    assert "needs --parts DIR" in fails(search.main, [*words, "--uri", "http://127.0.0.1:9"], capsys)


def test_a_missing_ray_is_one_line(tmp_path, run, photos, capsys, monkeypatch):
    monkeypatch.setattr("hgsl.common.extras.find_spec", lambda name: None)
    words = ["index", "--images", str(photos), "--checkpoint", str(run), "--engine", "ray", "--out", str(tmp_path)]
    assert "--engine ray needs ray" in fails(search.main, [*words[:-1], str(tmp_path / "index")], capsys)
