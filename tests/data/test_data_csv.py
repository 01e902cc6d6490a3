"""Tables of images: the two formats, errors by line and value, and round trips of generated tables and folders."""

import csv
import io
import itertools
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hgsl.common.errors import InputError
from hgsl.data import load_manifest, verify_files
from hgsl.data.adapters.csv import load
from hgsl.data.adapters.table import write_table


def write(folder: Path, text: str, name: str = "list.csv", encoding: str = "utf-8") -> Path:
    (folder / name).write_text(text, encoding=encoding)
    return folder / name


def test_integer_labels_are_sorted_numerically(tmp_path: Path) -> None:
    table = write(tmp_path, "img_path,label\nbirds\\a.jpg,10\nbirds/b.jpg,2\nbirds/c.jpg,1\n")
    manifest = load(table)
    assert manifest.paths == ("birds/a.jpg", "birds/b.jpg", "birds/c.jpg")
    assert manifest.class_names == ("1", "2", "10")  # by number, not by letter
    assert manifest.labels.tolist() == [2, 1, 0]
    assert manifest.root == tmp_path


def test_without_a_split_the_later_labels_are_the_test_split(tmp_path: Path) -> None:
    rows = "".join(f"{label}/{i}.jpg,{label}\n" for label in (4, 3, 2, 1, 0) for i in (1, 2))
    manifest = load_manifest("csv", write(tmp_path, "path,label\n" + rows))
    test = manifest.subset("test")
    assert {test.class_names[label] for label in test.labels} == {"3", "4"}


def test_lists_in_pairs(tmp_path: Path) -> None:
    table = write(tmp_path, "img_path,label\na,1\nb,1\nc,2\nd,2\n", "train.csv")
    write(tmp_path, "img_path,label\ne,3\nf,3\ng,4\nh,4\n", "test.csv")
    manifest = load_manifest("csv", table, test_list="test.csv")
    assert manifest.subset("train").paths == tuple("abcd")
    assert manifest.subset("test").paths == tuple("efgh")
    write(tmp_path, "img_path,label\ne,2\nf,2\n", "test.csv")
    with pytest.raises(InputError, match=r"1 class \(2\) both in train and in test"):
        load_manifest("csv", table, test_list="test.csv")


def test_open_metric_learning_format(tmp_path: Path) -> None:
    table = write(
        tmp_path,
        "path,label,split,is_query,is_gallery,category,x_1,y_1,x_2,y_2\n"
        "a,5,train,,,cat,0,0,10,10\n"
        "b,5,train,None,None,dog,1,1,10,10\n"
        "c,7,validation,True,False,cat,0,0,9,9\n"
        "d,7,validation,False,True,dog,0,0,8.5,8\n",
    )
    manifest = load_manifest("csv", table, "query-gallery")
    assert load(table).split.tolist() == ["train", "train", "val", "val"]
    assert manifest.split.tolist() == ["train", "train", "test", "test"]
    assert manifest.is_query.tolist() == [True, True, True, False]
    assert manifest.is_gallery.tolist() == [True, True, False, True]
    assert manifest.groups is not None
    assert manifest.groups.tolist() == [0, 1, 0, 1]
    assert manifest.boxes is not None
    assert manifest.boxes[3].tolist() == [0, 0, 8.5, 8]
    assert manifest.notes == ("the data has no test split: its validation images are the test split",)
    assert not manifest.crop_to_boxes


def test_categories_keep_their_names_in_a_written_table(tmp_path: Path) -> None:
    manifest = load(write(tmp_path, "path,label,category\na,1,zoo\nb,1,\nc,2,ark\nd,2,zoo\n"))
    assert manifest.categories == {0: "zoo", 2: "ark", 3: "zoo"}
    assert manifest.take(np.array([3, 1])).categories == {3: "zoo"}
    write_table(manifest, tmp_path / "again.csv")
    again = load(tmp_path / "again.csv")
    assert again.categories == manifest.categories
    assert again.groups is not None
    assert again.groups.tolist() == [1, 2, 0, 1]  # the row without a category is a group of its own


def test_any_column_can_be_the_group(tmp_path: Path) -> None:
    table = write(tmp_path, "path,label,camera\na,1,left\nb,1,right\nc,2,left\n")
    assert load(table).groups is None
    groups = load(table, group_column="camera").groups
    assert groups is not None
    assert groups.tolist() == [0, 1, 0]
    assert load(table, group_column="camera").categories == {0: "left", 1: "right", 2: "left"}
    with pytest.raises(InputError, match=r"unknown group_column of .*list.csv 'camra': did you mean 'camera'\?"):
        load(table, group_column="camra")


def test_validation_beside_test_is_validation(tmp_path: Path) -> None:
    manifest = load(write(tmp_path, "path,label,split\na,1,train\nb,2,val\nc,3,test\n"))
    assert manifest.split.tolist() == ["train", "val", "test"]
    assert manifest.notes == ()


def test_encoding_is_an_option(tmp_path: Path) -> None:
    table = write(tmp_path, "img_path,label\n鸟/一.jpg,蓝鸟\n", encoding="gbk")
    assert load(table, encoding="gbk").paths == ("鸟/一.jpg",)
    with pytest.raises(InputError, match=r"is not utf-8-sig text .*: save it as UTF-8, or set the option"):
        load(table)
    with pytest.raises(InputError, match="is not utf-99 text"):
        load(table, encoding="utf-99")
    bom = write(tmp_path, "path,label\na,1\n", "bom.csv", encoding="utf-8-sig")
    assert load(bom).paths == ("a",)


def test_root_may_be_the_folder_of_the_only_table(tmp_path: Path) -> None:
    write(tmp_path, "path,label\na,1\n")
    assert load(tmp_path).paths == ("a",)
    write(tmp_path, "path,label\na,1\n", "other.csv")
    with pytest.raises(InputError, match=r"several tables \(list.csv, other.csv\)"):
        load(tmp_path)
    with pytest.raises(FileNotFoundError, match="no table at"):
        load(tmp_path / "none.csv")


def test_absolute_paths_inside_the_root_become_relative(tmp_path: Path) -> None:
    table = write(tmp_path, f"path,label\n{tmp_path}/photos/a.jpg,1\n")
    assert load(table, image_root=tmp_path / "photos").paths == ("a.jpg",)
    with pytest.raises(InputError, match="not inside the data root"):
        load(write(tmp_path, "path,label\n/etc/passwd,1\n", "bad.csv"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no column 'img_path' or 'path': its columns are none"),
        ("path,label\n", "has a header but no rows"),
        ("image,label\na,1\n", "no column 'img_path' or 'path'.*its columns are image, label"),
        ("path,lable\na,1\n", r"no column 'label' \(is it 'lable'\?\)"),
        ("path|label\na|1\n", "no column"),
        ("path,img_path,label\na,a,1\n", "both a column"),
        ("path,label\na\n", "line 2: not 2 values"),
        ("path,label\na,1\nb,2,3\n", "line 3: not 2 values"),
        ("path,label\na,1\nb,\n", "line 3: the label is empty, expected a class name or number"),
        ("path,label\na,cat\nb,cat \n", "line 3: the label 'cat ' differs from 'cat' in .*, line 2 by blanks only"),
        ("path,label,label\na,1,2\n", "two columns 'label'"),
        ("path,label\n\na,1\n\n\na,2\n", "a is listed twice, in .*csv, line 3 and .*csv, line 6, as '1' and as '2'"),
        ("path,label\n\na,1\n../b,2\n", "list.csv, line 4 has the path '../b'"),
        ("path,label\n\na,1\n\nb,2,3\n", "line 5: not 2 values"),
        ("path,label,split\n\na,1,trainig\n", "line 3: the split 'trainig' is none of train, val"),
        ("path,label,split\na,1,\n", "line 2: the split ''"),
        ("path,label,split,is_query\na,1,test,\n", "line 2: is_query is '', expected True or False"),
        ("path,label,is_gallery\na,1,yes\n", "line 2: is_gallery is 'yes'"),
        ("path,label,x_1,y_1,x_2,y_2\na,1,0,0,,5\n", "line 2: the box 0, 0, , 5 is not four numbers"),
        ("path,label,x_1,y_1,x_2,y_2\na,1,0,0,0,5\n", "list.csv, line 2 .* has a box without area"),
        ('path,label\n"a,1\n', "is not a comma-separated table"),
    ],
)
def test_errors_name_the_line_and_the_value(tmp_path: Path, text: str, message: str) -> None:
    table = write(tmp_path, text)
    with pytest.raises(InputError, match=message) as caught:
        load(table)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == [table]  # nothing written


def test_missing_files_are_named(tmp_path: Path) -> None:
    rows = "".join(f"{label}{i},{label}\n" for label in "abcd" for i in range(2))
    manifest = load_manifest("csv", write(tmp_path, "path,label\n" + rows))
    (tmp_path / "a0").touch()
    with pytest.raises(FileNotFoundError, match=r"7 of 8 images are missing in .*: a1, b0, b1"):
        verify_files(manifest)


def table_of(labels: list[str]) -> str:
    return "path,label\n" + "".join(f"{row}.jpg,{label}\n" for row, label in enumerate(labels))


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (["007", "7", "0012", "12"], ["0012", "007", "12", "7"]),
        (["007", "7", "0012", "12", "x"], ["0012", "007", "12", "7", "x"]),
        (["12E3", "9", "1"], ["1", "12E3", "9"]),
        (["10", "9", "-1"], ["-1", "9", "10"]),
        (["1.0", "10.0", "9.0"], ["1.0", "10.0", "9.0"]),
        (["1", "+1", "1_0"], ["+1", "1", "1_0"]),
        (["nan", "None", "inf", "1e5"], ["1e5", "None", "inf", "nan"]),
        (["9" * 30, "10"], ["10", "9" * 30]),
        (["٣", "3"], ["3", "٣"]),
    ],
)
def test_labels_are_text_unless_all_are_integers(tmp_path: Path, labels: list[str], classes: list[str]) -> None:
    manifest = load(write(tmp_path, table_of(labels)))
    assert manifest.class_names == tuple(classes)
    assert [manifest.class_names[label] for label in manifest.labels] == labels


def test_whitespace_after_a_comma_is_not_part_of_a_value(tmp_path: Path) -> None:
    manifest = load(write(tmp_path, 'path, label, split\na.jpg, 7, train\n" b.jpg", " 8", test\n'))
    assert manifest.paths == ("a.jpg", " b.jpg")
    assert manifest.class_names == ("7", " 8")


@pytest.mark.parametrize(
    "classes",
    [["007", "7", "0012", "12"], ["12E3", "1", "2", "3"], [" a", "b ", "c\nd", 'e"f,g'], ["1", "2", "10", "é"]],
)
@pytest.mark.parametrize("protocol", ["zero-shot", "closed-set"])
def test_folder_to_manifest_to_table_keeps_the_split(tmp_path: Path, classes: list[str], protocol: str) -> None:
    tops = [""] if protocol == "zero-shot" else ["train/", "test/"]
    for top, name, number in itertools.product(tops, classes, range(2)):
        file = tmp_path / "photos" / f"{top}{name}" / f"\\{number}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x")
    manifest = load_manifest("folder", tmp_path / "photos", protocol)
    write_table(manifest, tmp_path / "copy.csv")
    copy = load_manifest("csv", tmp_path / "copy.csv", protocol, image_root=tmp_path / "photos")
    assert copy.split_hash == manifest.split_hash
    verify_files(copy)


@pytest.mark.parametrize("other", ["a ", "\u00a0a"])
def test_class_folders_that_a_table_cannot_keep_apart_are_refused(tmp_path: Path, other: str) -> None:
    for name, number in itertools.product(["a", other, "b", "c"], range(2)):
        file = tmp_path / "photos" / name / f"{number}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x")
    with pytest.raises(InputError, match="differ by blanks only: rename or merge one"):
        write_table(load_manifest("folder", tmp_path / "photos"), tmp_path / "copy.csv")
    assert not (tmp_path / "copy.csv").exists()


def test_a_manifest_without_a_split_is_written_and_read_back(tmp_path: Path) -> None:
    manifest = load(write(tmp_path, table_of(["a", "b"])))
    write_table(manifest, tmp_path / "copy.csv")
    assert load(tmp_path / "copy.csv").split_hash == manifest.split_hash


def test_paired_tables_may_have_other_columns(tmp_path: Path) -> None:
    train = write(tmp_path, "img_path,label\na,1\nb,1\nc,2\nd,2\n", "train.csv")
    write(tmp_path, "label,camera,path,is_query,is_gallery\n3,x,e,1,0\n3,,f,0,1\n\n4,x,g,1,maybe\n", "test.csv")
    with pytest.raises(InputError, match=r"test.csv, line 5: is_gallery is 'maybe', expected True or False"):
        load(train, test_list="test.csv")
    write(tmp_path, "label,category,path,is_query,is_gallery\n3,x,e,1,0\n3,,f,0,1\n4,x,g,1,0\n", "test.csv")
    manifest = load(train, test_list="test.csv")
    assert manifest.paths == tuple("abcdefg")
    assert manifest.is_query.tolist() == [True] * 5 + [False, True]
    assert manifest.groups is not None
    x, *others = manifest.groups[[4, 0, 1, 2, 3, 5]]
    assert manifest.groups[6] == x
    assert len({x, *others}) == 6  # rows without a group share none


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label,split\ne,3,test\n", "test.csv has a column 'split', which contradicts the option test_list"),
        ("path,label,x_1,y_1,x_2,y_2\ne,3,0,0,1,1\n", "train.csv lacks one of the columns x_1, .*which .*test.csv has"),
        ("path,label\n\na,3\n", "a is listed twice, in .*train.csv, line 2 and .*test.csv, line 3"),
        ("path,label\n\n../e,3\n", "test.csv, line 3 has the path '../e'"),
        ("path,label\ne,\n", "test.csv, line 2: the label is empty"),
    ],
)
def test_errors_in_paired_tables_name_the_right_one(tmp_path: Path, text: str, message: str) -> None:
    train = write(tmp_path, "img_path,label\na,1\nb,1\n", "train.csv")
    write(tmp_path, text, "test.csv")
    with pytest.raises(InputError, match=message):
        load(train, test_list="test.csv")


names = st.text(st.characters(codec="utf-8", exclude_categories=("C",), exclude_characters="/\\"), min_size=1).filter(
    lambda text: text.strip(".") != "" and text == text.strip()
)
labels = st.one_of(
    st.lists(names, min_size=1, max_size=9), st.lists(st.integers(-5, 10**6).map(str), min_size=1, max_size=9)
)


@st.composite
def tables(draw: st.DrawFn) -> list[dict[str, str]]:
    """Rows of a valid table in any of the forms, columns in any order, with one unrelated column."""
    classes = draw(labels)
    paths = draw(st.lists(st.lists(names, min_size=1, max_size=3).map("/".join), min_size=1, max_size=12, unique=True))
    rows = [
        {draw(st.just("path")): path, "label": draw(st.sampled_from(classes)), "remark": draw(names)} for path in paths
    ]
    if draw(st.booleans()):
        for row in rows:
            row |= {"split": draw(st.sampled_from(["train", "val", "test"]))}
            row |= {flag: draw(st.sampled_from(["True", "False"])) for flag in ("is_query", "is_gallery")}
    if draw(st.booleans()):
        for row in rows:
            x, y, w, h = (draw(st.integers(1, 500)) for _ in range(4))
            row |= {"x_1": str(x), "y_1": str(y), "x_2": str(x + w), "y_2": str(y + h)}
    columns = draw(st.permutations(list(rows[0])))
    return [{column: row[column] for column in columns} for row in rows]


@settings(deadline=None, max_examples=60)
@given(tables())
def test_every_row_of_a_valid_table_is_read_and_survives_a_round_trip(rows: list[dict[str, str]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0])
    writer.writeheader()
    writer.writerows(rows)
    with TemporaryDirectory() as folder:
        manifest = load(write(Path(folder), text.getvalue()))
        assert list(manifest.paths) == [row["path"] for row in rows]
        assert manifest.ids.tolist() == list(range(len(rows)))
        assert [manifest.class_names[label] for label in manifest.labels] == [row["label"] for row in rows]
        assert len(set(manifest.class_names)) == len(manifest.class_names)
        for i, row in enumerate(rows):
            train = row.get("split") == "train"
            assert manifest.is_query[i] == (train or row.get("is_query", "True") == "True")
            assert manifest.is_gallery[i] == (train or row.get("is_gallery", "True") == "True")
            if "x_1" in row:
                assert manifest.boxes is not None
                assert manifest.boxes[i].tolist() == [float(row[name]) for name in ("x_1", "y_1", "x_2", "y_2")]
        if "split" in rows[0]:
            copy = Path(folder) / "copy.csv"
            write_table(manifest, copy)
            again = load(copy)
            assert again.split_hash == manifest.split_hash
            assert again.class_names == manifest.class_names
            assert np.array_equal(again.split, manifest.split)


@pytest.mark.parametrize(("separator", "encoding"), [(";", "utf-8"), ("\t", "utf-8"), (";", "utf-16"), (",", "utf-16")])
def test_tables_of_spreadsheets_are_read(separator: str, encoding: str, tmp_path: Path) -> None:
    lines = [("path", "label", "split"), ("a b.jpg", "rosé, red", "train"), ("c.jpg", "tulip", "test")]
    quoted = [[f'"{value}"' if separator in value else value for value in line] for line in lines]
    table = write(tmp_path, "".join(separator.join(line) + "\r\n" for line in quoted), encoding=encoding)
    manifest = load(table)
    assert manifest.paths == ("a b.jpg", "c.jpg")
    assert manifest.class_names == ("rosé, red", "tulip")
    assert manifest.split.tolist() == ["train", "test"]


def test_an_empty_value_between_tabs_stays_in_its_column(tmp_path: Path) -> None:
    table = write(tmp_path, "path\tcategory\tlabel\na\t\trose\n")
    assert load(table).class_names == ("rose",)
