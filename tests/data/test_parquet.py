"""Parquet files and Hugging Face layouts: the same split and images as their source, read row group by row group."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from hgsl.cli.prepare_dataset import main
from hgsl.common.errors import InputError
from hgsl.common.files import locked
from hgsl.common.images import read_image
from hgsl.common.transforms import eval_transform
from hgsl.data import RetrievalDataset, build_dataset, list_images, load_manifest
from hgsl.data.audit import audit
from hgsl.data.files import parquet_images
from hgsl.data.files.parquet_writer import LOCK, write_parquet
from hgsl.data.run_split import record_of, restore
from tests.helpers import environment, fails

pyarrow = pytest.importorskip("pyarrow", reason="extra [parquet] is not installed")
pq = pytest.importorskip("pyarrow.parquet", reason="extra [parquet] is not installed")

CONFIG = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bilinear", "crop_pct": 1.0, "image_size": 16}


def image_bytes(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 24, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(12):
        path = tmp_path / f"photos/class {number % 4}/{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image_bytes(number))
    return tmp_path / "photos"


def write_rows(path: Path, rows: list[dict[str, object]], names: list[str] | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pyarrow.Table.from_pylist(rows)
    if names is not None:
        features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path)


def test_a_converted_folder_has_the_same_classes_split_record_and_tensors(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["folder", "--root", str(folder), "--option", "seed=3", "--to", "parquet"]) == 0
    out = folder.with_name("photos-parquet")
    assert f"wrote 12 images to 1 file in {out}" in capsys.readouterr().out
    source, converted = load_manifest("folder", folder, seed=3), load_manifest("parquet", out)
    assert converted.class_names == source.class_names
    for split in ("train", "test", "all"):
        assert converted.subset(split).split_hash == source.subset(split).split_hash
    assert record_of(converted).fingerprints == record_of(source).fingerprints
    restored, changes = restore(record_of(source), converted)
    assert not changes.losses()
    assert not changes.additions()
    transform = eval_transform(CONFIG, 16)
    datasets = [RetrievalDataset(manifest.subset("test"), transform) for manifest in (source, converted, restored)]
    expected, *others = [torch.stack([image for image, _, _ in dataset]) for dataset in datasets]  # type: ignore[attr-defined]
    assert all(torch.equal(other, expected) for other in others)
    assert "photos-parquet exists" in fails(main, ["folder", "--root", str(folder), "--to", "parquet"], capsys)
    assert "add --to parquet" in fails(main, ["folder", "--root", str(folder), "--out", "x"], capsys)


@pytest.mark.slow
def test_boxes_groups_flags_and_drawn_images_are_converted(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(image_bytes(0))
    rows = [
        "a.png,x,train,,,left,0,0,9,9",
        "a.png,y,test,True,False,right,5,5,20,20",
        "a.png,y,test,False,True,,1,1,8,8",
    ]
    (tmp_path / "list.csv").write_text(
        "path,label,split,is_query,is_gallery,category,x_1,y_1,x_2,y_2\n" + "\n".join(rows)
    )
    source = load_manifest("csv", tmp_path / "list.csv", "query-gallery", crop_to_boxes=True)
    write_parquet(source, tmp_path / "out")
    converted = load_manifest("parquet", tmp_path / "out", "query-gallery", crop_to_boxes=True)
    assert converted.split_hash == source.split_hash
    assert converted.categories == source.categories == {0: "left", 1: "right"}
    assert RetrievalDataset(converted).image(1).tobytes() == RetrievalDataset(source).image(1).tobytes()
    drawn = load_manifest("synthetic", num_classes=4, images_per_class=2, image_size=16)
    write_parquet(drawn, tmp_path / "drawn")
    stored = load_manifest("parquet", tmp_path / "drawn")
    assert stored.split_hash == drawn.split_hash
    assert RetrievalDataset(stored).image(3).tobytes() == RetrievalDataset(drawn).image(3).tobytes()


def test_reading_a_row_decodes_its_row_group_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = load_manifest("folder", folder)
    assert write_parquet(manifest, folder / "../out", file_bytes=5000, group_bytes=2500) > 1
    converted = load_manifest("parquet", folder / "../out")
    content = converted.content
    assert content is not None
    read: list[tuple[int, list[str]]] = []
    read_row_group = pq.ParquetFile.read_row_group

    def counted(file: object, group: int, columns: list[str], **options: object) -> object:
        read.append((group, columns))
        return read_row_group(file, group, columns=columns, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", counted)
    allocated = pyarrow.total_allocated_bytes()
    for row in (7, 0, 11, 10):
        assert converted.location(row).read() == manifest.location(row).read_bytes()  # type: ignore[union-attr]
        assert pyarrow.total_allocated_bytes() - allocated < 4 * 2500
    assert all(columns == ["image.bytes"] for _, columns in read)
    assert len(read) == len({tuple(content.position(row)[:2]) for row in (7, 0, 11, 10)})
    groups = np.diff(content.group_starts)
    assert groups.max() <= 2
    assert groups.sum() == 12


def test_loader_processes_open_the_files_themselves(folder: Path, tmp_path: Path) -> None:
    write_parquet(load_manifest("folder", folder), tmp_path / "out", file_bytes=5000, group_bytes=2500)
    dataset = build_dataset("parquet", tmp_path / "out", "all", transform=eval_transform(CONFIG, 16))
    expected = torch.stack([image for image, _, _ in dataset])  # type: ignore[attr-defined]
    parent = parquet_images._OPENED.process
    loader = DataLoader(dataset, batch_size=4, num_workers=2)
    assert torch.equal(torch.cat([images for images, _, _ in loader]), expected)
    assert parent == os.getpid()
    cached = build_dataset(
        "parquet", tmp_path / "out", "all", transform=eval_transform(CONFIG, 16), cache_dir=tmp_path / "cache"
    )
    assert all(torch.equal(cached[row][0], expected[row]) for row in (0, 5, 0))
    assert len(list((tmp_path / "cache").rglob("*.npy"))) == 2


def test_files_of_hugging_face_have_its_classes_and_splits(tmp_path: Path) -> None:
    names = ["zebra", "ant", "bee", "unused"]
    for file, labels in (("data/train-00000-of-00001", (0, 1, 0, 1)), ("data/test-00000-of-00001", (2, 0, -1))):
        rows: list[dict[str, object]] = [
            {"image": {"bytes": image_bytes(number), "path": "1.png"}, "label": label}
            for number, label in enumerate(labels)
        ]
        write_rows(tmp_path / f"{file}.parquet", rows, names)
    manifest = list_images("parquet", tmp_path)
    assert manifest.class_names == tuple(names)
    assert manifest.labels.tolist() == [2, 0, 0, 1, 0, 1]
    assert manifest.split.tolist() == ["test"] * 2 + ["train"] * 4
    assert manifest.protocol == "closed-set"
    assert manifest.paths[1] == "data/test-00000-of-00001/0000001"  # 1.png is every image's path
    assert manifest.skipped == ((f"{tmp_path}/data/test-00000-of-00001.parquet, row 2", "no label"),)
    dataset = RetrievalDataset(manifest)
    assert dataset.image(1).tobytes() == read_image_bytes(image_bytes(1))
    assert dataset.image(5).tobytes() == read_image_bytes(image_bytes(3))
    assert record_of(manifest).fingerprints[1] == record_of(manifest).fingerprints[3]  # the same content


def read_image_bytes(content: bytes) -> bytes:
    return Image.open(io.BytesIO(content)).tobytes()


def test_a_column_of_paths_is_read_like_a_table(folder: Path) -> None:
    names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*.png"))]
    struct = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    images = [{"bytes": None, "path": name} for name in names]
    for column, values in (
        ("image", pyarrow.array(images, struct)),
        ("image", pyarrow.array(images)),
        ("image", pyarrow.array(names)),
        ("path", pyarrow.array(names)),
    ):
        pq.write_table(pyarrow.table({column: values, "label": [name[6] for name in names]}), folder / "list.parquet")
        manifest = list_images("parquet", folder)
        assert manifest.content is None
        assert manifest.paths == tuple(names)
        assert RetrievalDataset(manifest).image(3).tobytes() == read_image(folder / names[3]).tobytes()


def test_broken_images_rows_and_files_are_named(folder: Path, tmp_path: Path) -> None:
    contents = [image_bytes(0), b"<html>", None, image_bytes(1)[:-900]]
    rows: list[dict[str, object]] = [
        {"image": {"bytes": content, "path": f"{number}.png"}, "label": "a", "split": "train"}
        for number, content in enumerate(contents)
    ]
    write_rows(tmp_path / "p/0.parquet", rows)
    dataset = RetrievalDataset(list_images("parquet", tmp_path / "p"))
    for row, reason in ((1, "the file is no image"), (2, "the row has no image"), (3, "truncated")):
        with pytest.raises(
            InputError, match=rf"cannot read image {row}.png \(row {row} of .*p/0.parquet\): .*{reason}"
        ):
            dataset.image(row)
    findings = audit(dataset.manifest).findings
    assert findings["unreadable"] == [["1.png"], ["2.png"]]
    assert findings["damaged"] == [["3.png"]]
    (tmp_path / "q").mkdir()
    (tmp_path / "q/0.parquet").write_bytes((tmp_path / "p/0.parquet").read_bytes()[:-9])
    with pytest.raises(InputError, match=r"q/0.parquet is not a Parquet file, or damaged"):
        list_images("parquet", tmp_path / "q")
    (folder / "class 1/1.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"class 1/1.png is an empty file"):
        write_parquet(load_manifest("csv", _table(folder)), tmp_path / "out")
    assert not [path for path in tmp_path.iterdir() if "out" in path.name]  # nothing is left behind


def _table(folder: Path) -> Path:
    lines = [f"{path.relative_to(folder)},{path.parent.name}" for path in sorted(folder.rglob("*.png"))]
    (folder / "list.csv").write_text("path,label\n" + "\n".join(lines))
    return folder / "list.csv"


def test_wrong_columns_and_a_folder_without_files_are_refused(folder: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "p/0.parquet", [{"image": image_bytes(0), "label": "a"}])
    with pytest.raises(InputError, match=r"unknown label_column of .*0.parquet 'lable': did you mean 'label'"):
        list_images("parquet", tmp_path / "p", label_column="lable")
    write_rows(tmp_path / "p/0.parquet", [{"image": 3, "label": "a"}])
    with pytest.raises(InputError, match="the column 'image' has the type int64, expected binary"):
        list_images("parquet", tmp_path / "p")
    with pytest.raises(FileNotFoundError, match=r"there is no .parquet file in"):
        list_images("parquet", folder)


def test_files_without_rows_are_passed_over_and_other_columns_refused(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"image": {"bytes": image_bytes(number), "path": f"{number}.png"}, "label": "ab"[number % 2]}
        for number in range(4)
    ]
    write_rows(tmp_path / "p/1.parquet", rows)
    pq.write_table(pyarrow.Table.from_pylist(rows).slice(0, 0), tmp_path / "p/0.parquet")
    assert len(list_images("parquet", tmp_path / "p")) == 4
    write_rows(tmp_path / "p/2.parquet", [{"image": image_bytes(5), "label": "a"}])
    with pytest.raises(InputError, match=r"2.parquet stores images in another way than .*1.parquet"):
        list_images("parquet", tmp_path / "p")
    write_rows(tmp_path / "p/2.parquet", [{"image": {"bytes": image_bytes(5), "path": "5.png"}}])
    with pytest.raises(InputError, match=r"unknown label_column of .*2.parquet 'label'"):
        list_images("parquet", tmp_path / "p")
    for name in ("1", "2"):
        (tmp_path / f"p/{name}.parquet").unlink()
    with pytest.raises(InputError, match="have no rows"):
        list_images("parquet", tmp_path / "p")


@pytest.mark.slow
def test_what_a_killed_conversion_has_left_is_removed(folder: Path, tmp_path: Path) -> None:
    script = (
        "import os, signal, sys; from pathlib import Path; from hgsl.data import load_manifest\n"
        "from hgsl.data.files import parquet_writer\n"
        "parquet_writer._write_file = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "parquet_writer.write_parquet(load_manifest('folder', Path(sys.argv[1])), Path(sys.argv[2]))"
    )
    done = subprocess.run([sys.executable, "-c", script, folder, tmp_path / "out"], env=environment())
    assert done.returncode == -signal.SIGKILL
    [left] = tmp_path.glob(".out.*")
    with locked(left / LOCK, "it is being written"):  # as if it were still running
        write_parquet(load_manifest("folder", folder), tmp_path / "out")
    assert left.exists()
    shutil.rmtree(tmp_path / "out")
    write_parquet(load_manifest("folder", folder), tmp_path / "out")
    assert not left.exists()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["00000.parquet"]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_image_folders_with_metadata(tmp_path: Path, kind: str) -> None:
    for split, labels in (("train", "aabb"), ("test", "ccdd")):
        (tmp_path / split).mkdir()
        for number in range(4):
            (tmp_path / split / f"{number}.png").write_bytes(image_bytes(number))
        rows = [
            {"file_name": f"{number}.png", "species": label, "img_path": "camera/7.raw"}  # of another meaning
            for number, label in enumerate(labels)
        ]
        lines = ["file_name,species,img_path", *(",".join(row.values()) for row in rows)]
        text = "\n".join(map(json.dumps, rows) if kind == "jsonl" else lines)
        if kind == "parquet":
            write_rows(tmp_path / split / "metadata.parquet", rows)
        else:
            (tmp_path / split / f"metadata.{kind}").write_text(text)
    manifest = load_manifest("imagefolder", tmp_path, label_column="species")
    assert manifest.subset("train").paths == tuple(f"train/{number}.png" for number in range(4))
    assert [manifest.class_names[label] for label in manifest.subset("test").labels] == list("ccdd")
    assert RetrievalDataset(manifest).image(6).size == (24, 20)
    with pytest.raises(InputError, match=r"metadata.* no (column )?'label'"):
        load_manifest("imagefolder", tmp_path)
    with pytest.raises(FileNotFoundError, match="the data set imagefolder reads"):
        load_manifest("parquet", tmp_path)
    (tmp_path / "test/metadata.jsonl").write_bytes(b'{"file_name": "0.png", "species": "caf\xe9"}')
    with pytest.raises(InputError, match=r"metadata.jsonl, line 1: not a JSON object in UTF-8"):
        load_manifest("imagefolder", tmp_path, label_column="species")
