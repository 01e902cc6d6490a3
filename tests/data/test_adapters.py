"""Adapters of benchmarks: counts of the official annotation files, and small archives under the official names."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from hgsl.common.errors import InputError
from hgsl.data import DATASETS, build_dataset, load_manifest, verify_files
from hgsl.data.files.cards import count, read_card


def split_counts(train: tuple[int, int], test: tuple[int, int]) -> dict[str, dict[str, int]]:
    return {name: {"classes": c, "images": i} for name, (c, i) in (("train", train), ("test", test))}


@pytest.mark.parametrize(
    ("name", "folder", "protocol", "train", "test"),
    [
        ("cub", "CUB_200_2011", "zero-shot", (100, 5864), (100, 5924)),
        ("cub", "CUB_200_2011", "closed-set", (200, 5994), (200, 5794)),
        ("cars", "stanford_cars", "zero-shot", (98, 8054), (98, 8131)),
        ("cars", "stanford_cars", "closed-set", (196, 8144), (196, 8041)),
        ("aircraft", "aircraft", "zero-shot", (50, 5000), (50, 5000)),
        ("aircraft", "aircraft/data", "closed-set", (100, 6667), (100, 3333)),
        ("flowers", "flowers102", "zero-shot", (51, 3493), (51, 4696)),
    ],
)
def test_official_counts(
    test_data: Path, name: str, folder: str, protocol: str, train: tuple[int, int], test: tuple[int, int]
) -> None:
    manifest = load_manifest(name, test_data / "annotations" / folder, protocol)
    assert count(manifest) == split_counts(train, test)
    card = read_card(name)
    assert card is not None
    if (name, protocol) != ("aircraft", "closed-set"):  # the official archive also separates val from train
        assert card["expected"][protocol] == count(manifest)
    if protocol == "zero-shot":
        order = [manifest.split[manifest.labels == label][0] for label in range(len(manifest.class_names))]
        assert order == ["train"] * train[0] + ["test"] * test[0]


def test_official_flowers_split(test_data: Path) -> None:
    counts = count(load_manifest("flowers", test_data / "annotations/flowers102", "closed-set"))
    assert {split: numbers["images"] for split, numbers in counts.items()} == {"train": 1020, "val": 1020, "test": 6149}


def test_both_forms_of_cars_agree(test_data: Path, tmp_path: Path) -> None:
    source = test_data / "annotations/stanford_cars"
    shutil.copytree(source / "devkit", tmp_path / "devkit")
    forms = [load_manifest("cars", root, "closed-set") for root in (source, tmp_path)]
    assert count(forms[0]) == count(forms[1])
    assert forms[0].class_names == forms[1].class_names
    assert forms[0].paths[0] == "car_ims/000001.jpg"
    assert forms[1].paths[0] == "cars_train/00001.jpg"
    for column in ("labels", "boxes"):  # the same images in another order
        first, second = (np.sort(getattr(form, column), axis=0) for form in forms)
        assert np.array_equal(first, second)


def test_cub_boxes_are_corners(test_data: Path) -> None:
    manifest = load_manifest("cub", test_data / "annotations/CUB_200_2011")
    assert manifest.boxes is not None
    assert manifest.boxes[0].tolist() == [60, 27, 60 + 325, 27 + 304]
    assert manifest.paths[0] == "images/001.Black_footed_Albatross/Black_Footed_Albatross_0046_18.jpg"
    assert manifest.class_names[0] == "001.Black_footed_Albatross"


def test_flowers17_on_the_real_images(test_data: Path) -> None:
    manifest = load_manifest("flowers17", test_data / "flowers17")
    verify_files(manifest)
    assert count(manifest) == split_counts((9, 720), (8, 640))
    image, label, row = build_dataset("flowers17", test_data / "flowers17", "test")[100]
    assert (label, row) == (1, 820)
    with Image.open(test_data / "flowers17/jpg/image_0821.jpg") as original:
        assert np.array_equal(np.asarray(image), np.asarray(original))


# Small archives with the layout of the official ones; each function returns its (path, class name, split) rows.

Rows = list[tuple[str, str, str]]


def lines(path: Path, *rows: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(rows) + "\n")


def images(root: Path, rows: Rows) -> None:
    for i, (path, _, _) in enumerate(rows):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20 + i, 16), (10 * i, 0, 0)).save(root / path, "JPEG")


def make_cub(root: Path) -> Rows:
    rows = [
        (f"images/{c:03}.bird_{c}/b{i}.jpg", f"{c:03}.bird_{c}", ("train", "test")[i % 2])
        for c in (1, 2, 3, 4)
        for i in (0, 1)
    ]
    base = root / "CUB_200_2011"
    lines(base / "images.txt", *(f"{n} {path[7:]}" for n, (path, _, _) in enumerate(rows, 1)))
    lines(base / "image_class_labels.txt", *(f"{n} {int(name[:3])}" for n, (_, name, _) in enumerate(rows, 1)))
    lines(base / "train_test_split.txt", *(f"{n} {int(split == 'train')}" for n, (_, _, split) in enumerate(rows, 1)))
    lines(base / "classes.txt", *(f"{c} {c:03}.bird_{c}" for c in (1, 2, 3, 4)))
    lines(base / "bounding_boxes.txt", *(f"{n} 2.0 3.0 10.0 8.0" for n in range(1, 9)))
    images(base, rows)
    return rows


def annotations(rows: Rows, **fields: object) -> np.ndarray:
    names = ["bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", *fields]
    table = np.zeros((1, len(rows)), [(name, object) for name in names])
    for i in range(len(rows)):
        values = [3, 4, 12, 11, *(values[i] for values in fields.values())]  # type: ignore[index]
        table[0, i] = tuple(values)
    return table


def make_cars(root: Path) -> Rows:
    rows = [(f"car_ims/{i:06}.jpg", f"Make {i // 2}", ("train", "test")[i % 2]) for i in range(8)]
    table = annotations(
        rows,
        relative_im_path=[path for path, _, _ in rows],
        **{"class": [i // 2 + 1 for i in range(8)], "test": [i % 2 for i in range(8)]},
    )
    root.mkdir(exist_ok=True)
    savemat(
        root / "cars_annos.mat",
        {"annotations": table, "class_names": np.array([[f"Make {i}" for i in range(4)]], object)},
    )
    images(root, rows)
    return rows


def make_devkit(root: Path) -> Rows:
    parts = ("train", "test")
    rows = [(f"cars_{part}/{i + 1:05}.jpg", f"Make {i}", part) for part in parts for i in range(4)]
    (root / "devkit").mkdir(parents=True)
    savemat(root / "devkit/cars_meta.mat", {"class_names": np.array([[f"Make {i}" for i in range(4)]], object)})
    for part, file in (("train", "cars_train_annos.mat"), ("test", "cars_test_annos_withlabels.mat")):
        part_rows = [row for row in rows if row[2] == part]
        fields = {"class": [i + 1 for i in range(4)], "fname": [path.split("/")[1] for path, _, _ in part_rows]}
        savemat(root / "devkit" / file, {"annotations": annotations(part_rows, **fields)})
    images(root, rows)
    return rows


def nest_like_kaggle(root: Path) -> Rows:
    rows = make_devkit(root / "plain")
    for part in ("train", "test"):
        shutil.copytree(root / f"plain/cars_{part}", root / f"cars_{part}/cars_{part}")
    shutil.copytree(root / "plain/devkit", root / "car_devkit/devkit")
    labels = root / "car_devkit/devkit/cars_test_annos_withlabels.mat"
    labels.rename(root / "cars_test_annos_withlabels (1).mat")
    shutil.rmtree(root / "plain")
    return [(f"{path.split('/')[0]}/{path}", name, part) for path, name, part in rows]


def make_aircraft(root: Path) -> Rows:
    base = root / "fgvc-aircraft-2013b/data"
    rows = [(f"images/{i:07}.jpg", f"Boeing 70{i % 4}", ("train", "val", "test")[i % 3]) for i in range(12)]
    lines(base / "variants.txt", *(f"Boeing 70{c}" for c in range(4)))
    lines(base / "manufacturers.txt", "Boeing")
    for part in ("train", "val", "test"):
        part_rows = [(path[7:-4], name) for path, name, split in rows if split == part]
        lines(base / f"images_variant_{part}.txt", *(f"{image} {name}" for image, name in reversed(part_rows)))
        lines(base / f"images_manufacturer_{part}.txt", *(f"{image} Boeing" for image, _ in part_rows))
    lines(base / "images_box.txt", *(f"{i:07} 3 4 12 11" for i in range(12)))
    images(base, rows)
    return rows


def make_flowers(root: Path) -> Rows:
    splits = ["train", "val", "test", "test"] * 4
    rows = [(f"jpg/image_{i + 1:05}.jpg", str(i // 4 + 1), splits[i]) for i in range(16)]
    root.mkdir(exist_ok=True)
    savemat(root / "imagelabels.mat", {"labels": np.array([[i // 4 + 1 for i in range(16)]], float)})
    parts = {"trnid": "train", "valid": "val", "tstid": "test"}
    numbers = {key: np.array([[i + 1 for i in range(16) if splits[i] == part]], float) for key, part in parts.items()}
    savemat(root / "setid.mat", numbers)
    images(root, rows)
    return rows


def make_sop(root: Path) -> Rows:
    base = root / "Stanford_Online_Products"
    header = "image_id class_id super_class_id path"
    rows = []
    for part, classes in (("train", (1, 2)), ("test", (3, 12))):
        part_rows = [(f"chair_final/{c}_{i}.JPG", str(c), part) for c in classes for i in (0, 1)]
        start = len(rows) + 1
        lines(
            base / f"Ebay_{part}.txt",
            header,
            *(f"{n} {name} 3 {path}" for n, (path, name, _) in enumerate(part_rows, start)),
        )
        rows += part_rows
    images(base, rows)
    return rows


def make_inshop(root: Path) -> Rows:
    status = ["train", "train", "train", "train", "query", "gallery", "query", "gallery"]
    rows = [
        (
            f"img/WOMEN/id_{i // 2:08}/{i}.jpg",
            f"id_{i // 2:08}",
            status[i].replace("query", "test").replace("gallery", "test"),
        )
        for i in range(8)
    ]
    listed = [f"{path}  {name}  {status[i]}" for i, (path, name, _) in enumerate(rows)]
    lines(root / "Eval/list_eval_partition.txt", "8", "image_name item_id evaluation_status", *listed)
    images(root / "Img", rows)
    return rows


MAKERS = {
    "cub": make_cub,
    "cars": make_cars,
    "devkit": make_devkit,
    "kaggle": nest_like_kaggle,
    "aircraft": make_aircraft,
    "flowers": make_flowers,
    "sop": make_sop,
    "inshop": make_inshop,
}
OWN_SPLIT = {"sop": "zero-shot", "inshop": "query-gallery"}


@pytest.mark.parametrize("layout", MAKERS)
def test_small_archives_are_read_row_by_row(tmp_path: Path, layout: str) -> None:
    name = "cars" if layout in ("devkit", "kaggle") else layout
    expected = MAKERS[layout](tmp_path / "data")
    manifest = load_manifest(name, tmp_path / "data", OWN_SPLIT.get(layout, "closed-set"))
    verify_files(manifest)
    rows = [
        (path, manifest.class_names[label], str(split))
        for path, label, split in zip(manifest.paths, manifest.labels, manifest.split, strict=True)
    ]
    assert rows == expected
    zero = load_manifest(name, tmp_path / "data")
    assert len(np.unique(zero.labels[zero.split == "train"])) == len(zero.class_names) // 2
    if zero.boxes is not None:
        assert zero.boxes[0].tolist() == ([2, 3, 12, 11])
        size = build_dataset(name, tmp_path / "data", crop_to_boxes=True)[0][0].size
        assert size == (10, 8)
    for split in ("train", "test"):
        data = build_dataset(name, tmp_path / "data", split)
        for index in range(len(data)):
            image, _, row = data[index]
            assert image.width == 20 + row  # the image of this row and of no other


def test_devkit_labels_may_lie_beside_it_and_are_needed(tmp_path: Path) -> None:
    make_devkit(tmp_path)
    labels = tmp_path / "devkit/cars_test_annos_withlabels.mat"
    labels.rename(tmp_path / labels.name)
    assert len(load_manifest("cars", tmp_path)) == 8
    (tmp_path / labels.name).unlink()
    with pytest.raises(FileNotFoundError, match="the test images have no labels without it"):
        load_manifest("cars", tmp_path)


def test_aircraft_levels(tmp_path: Path) -> None:
    make_aircraft(tmp_path)
    manifest = load_manifest("aircraft", tmp_path, "closed-set", level="manufacturer")
    assert manifest.class_names == ("Boeing",)
    assert manifest.notes == ("classes are of the level manufacturer",)
    with pytest.raises(InputError, match="unknown level of aircraft 'varient': did you mean 'variant'"):
        load_manifest("aircraft", tmp_path, level="varient")
    with pytest.raises(FileNotFoundError, match=r"families.txt is not in .*: give the folder of the unpacked"):
        load_manifest("aircraft", tmp_path, level="family")


def test_inshop_separates_queries_from_gallery(tmp_path: Path) -> None:
    make_inshop(tmp_path)
    for protocol in ("query-gallery", "zero-shot"):
        test = load_manifest("inshop", tmp_path, protocol).subset("test")
        assert test.is_query.tolist() == [True, False, True, False]
        assert test.is_gallery.tolist() == [False, True, False, True]


def test_sop_keeps_its_categories(tmp_path: Path) -> None:
    make_sop(tmp_path)
    manifest = load_manifest("sop", tmp_path)
    assert manifest.groups is not None
    assert set(manifest.groups.tolist()) == {2}
    with pytest.raises(InputError, match="in test without a training image"):
        load_manifest("sop", tmp_path, "closed-set")


@pytest.mark.parametrize("name", sorted(set(DATASETS) - {"folder", "csv", "imagefolder", "parquet", "synthetic"}))
def test_a_missing_root_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(FileNotFoundError, match=f"{name}: the data root .*nowhere does not exist"):
        load_manifest(name, tmp_path / "nowhere")
    with pytest.raises(
        FileNotFoundError, match=f"{name}: .* is not in .*: give the folder of the unpacked official archive"
    ):
        load_manifest(name, tmp_path)


@pytest.mark.parametrize(
    ("layout", "file", "change", "message"),
    [
        ("cub", "CUB_200_2011/images.txt", ("8 ", "x\n9 "), "line 8: 1 values, expected 2: 'x'"),
        ("cub", "CUB_200_2011/images.txt", ("8 ", "7 "), "1 rows repeat the number of another row"),
        ("cub", "CUB_200_2011/bounding_boxes.txt", ("8 2", "9 2"), "list different images"),
        ("cub", "CUB_200_2011/bounding_boxes.txt", ("8 2", "8 x2"), "bounding_boxes.txt: could not convert .* 'x2"),
        ("cub", "CUB_200_2011/image_class_labels.txt", ("8 4", "8 5"), "names class 5, which is not in classes.txt"),
        (
            "aircraft",
            "fgvc-aircraft-2013b/data/variants.txt",
            ("Boeing 703", "B 703"),
            "names the class 'Boeing 703', which is not in variants",
        ),
        ("aircraft", "fgvc-aircraft-2013b/data/images_box.txt", ("0000011", "0000012"), "no box for image 0000011"),
        ("sop", "Stanford_Online_Products/Ebay_test.txt", ("6 3 3", "6 three 3"), "'three' is not a whole number"),
        (
            "inshop",
            "Eval/list_eval_partition.txt",
            ("8\n", "9\n"),
            "has 8 images, expected 9 as its first line states: it is incomplete",
        ),
        ("inshop", "Eval/list_eval_partition.txt", ("  query", "  queries"), "line 7: the status 'queries'"),
    ],
)
def test_lists_that_contradict_each_other(
    tmp_path: Path, layout: str, file: str, change: tuple[str, str], message: str
) -> None:
    MAKERS[layout](tmp_path)
    text = (tmp_path / file).read_text()
    assert change[0] in text
    (tmp_path / file).write_text(text.replace(*change))
    with pytest.raises(InputError, match=message):
        load_manifest(layout, tmp_path)


def test_damaged_matlab_files(tmp_path: Path) -> None:
    make_flowers(tmp_path)
    savemat(tmp_path / "setid.mat", {"trnid": [[1.0]], "valid": [[2.0]], "tstid": [[3.0]]})
    with pytest.raises(InputError, match="does not split the 16 images"):
        load_manifest("flowers", tmp_path)
    savemat(tmp_path / "setid.mat", {"trnid": [[1.0]]})
    with pytest.raises(InputError, match="has no variable 'valid'"):
        load_manifest("flowers", tmp_path)
    (tmp_path / "imagelabels.mat").write_bytes(b"no matlab")
    with pytest.raises(InputError, match="not a readable MATLAB file"):
        load_manifest("flowers", tmp_path)
