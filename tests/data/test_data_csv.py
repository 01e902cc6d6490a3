"""Tables: the two formats, what they refuse by line and value, and a property test over generated ones."""

import csv
import io
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hgsl.common.errors import InputError
from hgsl.data import load_manifest, verify_files
from hgsl.data.adapters.csv import load, write_table


def write(folder: Path, text: str, name: str = "list.csv", encoding: str = "utf-8") -> Path:
    (folder / name).write_text(text, encoding=encoding)
    return folder / name


def test_published_lists_count_labels_from_one(tmp_path: Path) -> None:
    table = write(tmp_path, "img_path,label\nbirds\\a.jpg,10\nbirds/b.jpg,2\nbirds/c.jpg,1\n")
    manifest = load(table)
    assert manifest.paths == ("birds/a.jpg", "birds/b.jpg", "birds/c.jpg")
    assert manifest.class_names == ("1", "2", "10")  # by number, not by letter
    assert manifest.labels.tolist() == [2, 1, 0]
    assert manifest.root == tmp_path


def test_a_table_without_split_searches_the_later_labels(tmp_path: Path) -> None:
    rows = "".join(f"{label}/{i}.jpg,{label}\n" for label in (4, 3, 2, 1, 0) for i in (1, 2))
    manifest = load_manifest("csv", write(tmp_path, "path,label\n" + rows))
    test = manifest.subset("test")
    assert {test.class_names[label] for label in test.labels} == {"3", "4"}


def test_lists_that_come_in_pairs(tmp_path: Path) -> None:
    table = write(tmp_path, "img_path,label\na,1\nb,1\nc,2\nd,2\n", "train.csv")
    write(tmp_path, "img_path,label\ne,3\nf,3\ng,4\nh,4\n", "test.csv")
    manifest = load_manifest("csv", table, test_list="test.csv")
    assert manifest.subset("train").paths == tuple("abcd")
    assert manifest.subset("test").paths == tuple("efgh")
    write(tmp_path, "img_path,label\ne,2\nf,2\n", "test.csv")
    with pytest.raises(InputError, match=r"1 classes \(2\) are both in train and in test"):
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
    assert manifest.split.tolist() == ["train", "train", "test", "test"]
    assert manifest.is_query.tolist() == [True, True, True, False]
    assert manifest.is_gallery.tolist() == [True, True, False, True]
    assert manifest.groups is not None
    assert manifest.groups.tolist() == [0, 1, 0, 1]
    assert manifest.boxes is not None
    assert manifest.boxes[3].tolist() == [0, 0, 8.5, 8]
    assert manifest.notes == ("the table has no test rows, its validation rows are searched",)
    assert not manifest.crop_to_boxes


def test_any_column_can_be_the_group(tmp_path: Path) -> None:
    table = write(tmp_path, "path,label,camera\na,1,left\nb,1,right\nc,2,left\n")
    assert load(table).groups is None
    groups = load(table, group_column="camera").groups
    assert groups is not None
    assert groups.tolist() == [0, 1, 0]
    with pytest.raises(InputError, match=r"unknown group_column of .*list.csv 'camra': did you mean 'camera'\?"):
        load(table, group_column="camra")


def test_validation_beside_test_is_validation(tmp_path: Path) -> None:
    manifest = load(write(tmp_path, "path,label,split\na,1,train\nb,2,val\nc,3,test\n"))
    assert manifest.split.tolist() == ["train", "val", "test"]
    assert manifest.notes == ()


def test_encoding_is_an_option(tmp_path: Path) -> None:
    table = write(tmp_path, "img_path,label\n鸟/一.jpg,蓝鸟\n", encoding="gbk")
    assert load(table, encoding="gbk").paths == ("鸟/一.jpg",)
    with pytest.raises(InputError, match=r"is not utf-8-sig text .*: name its encoding"):
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
        ("path;label\na;1\n", "no column"),
        ("path,img_path,label\na,a,1\n", "both a column"),
        ("path,label\na\n", "line 2: not 2 values"),
        ("path,label\na,1\nb,2,3\n", "line 3: not 2 values"),
        ("path,label\na,1\nb,\n", "line 3: the label '' is neither a whole number nor a name"),
        ("path,label\na,1.5\n", "line 2: the label '1.5'"),
        ("path,label\na,nan\n", "line 2: the label 'nan'"),
        ("path,label\na,-1\n", "line 2: the label '-1'"),
        ("path,label\na,1\na,2\n", "a is listed twice, in rows 0 and 1, as '1' and as '2': keep one"),
        ("path,label\na,1\n../b,2\n", "row 1 has the path '../b'"),
        ("path,label,split\na,1,training\n", "line 2: the split 'training' is none of train, val"),
        ("path,label,split\na,1,\n", "line 2: the split ''"),
        ("path,label,split,is_query\na,1,test,\n", "line 2: is_query is '', expected True or False"),
        ("path,label,is_gallery\na,1,yes\n", "line 2: is_gallery is 'yes'"),
        ("path,label,x_1,y_1,x_2,y_2\na,1,0,0,,5\n", "line 2: the box 0, 0, , 5 is not four numbers"),
        ("path,label,x_1,y_1,x_2,y_2\na,1,0,0,0,5\n", "row 0 .* has a box without area"),
        ('path,label\n"a,1\n', "no comma-separated table"),
    ],
)
def test_refuses_by_line_and_value(tmp_path: Path, text: str, message: str) -> None:
    table = write(tmp_path, text)
    with pytest.raises(InputError, match=message) as caught:
        load(table)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == [table]  # nothing written


def test_missing_files_are_named_by_row(tmp_path: Path) -> None:
    rows = "".join(f"{label}{i},{label}\n" for label in "abcd" for i in range(2))
    manifest = load_manifest("csv", write(tmp_path, "path,label\n" + rows))
    (tmp_path / "a0").touch()
    with pytest.raises(FileNotFoundError, match=r"7 of 8 images are not in .*: row 1 a1, row 2 b0"):
        verify_files(manifest)


names = st.text(
    st.characters(codec="utf-8", exclude_categories=("C", "Z"), exclude_characters="/\\"), min_size=1
).filter(lambda text: text.strip(".") != "" and text == text.strip())
words = names.filter(lambda text: not _number(text))
labels = st.one_of(
    st.lists(words, min_size=1, max_size=9), st.lists(st.integers(0, 10**6).map(str), min_size=1, max_size=9)
)


def _number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


@st.composite
def tables(draw: st.DrawFn) -> list[dict[str, str]]:
    """Rows of a valid table in any of the forms, columns in any order, with one unrelated column."""
    kinds = draw(labels)
    paths = draw(st.lists(st.lists(names, min_size=1, max_size=3).map("/".join), min_size=1, max_size=12, unique=True))
    rows = [
        {draw(st.just("path")): path, "label": draw(st.sampled_from(kinds)), "remark": draw(names)} for path in paths
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
def test_every_row_of_a_valid_table_arrives_and_survives_a_round_trip(rows: list[dict[str, str]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0])
    writer.writeheader()
    writer.writerows(rows)
    with TemporaryDirectory() as folder:
        manifest = load(write(Path(folder), text.getvalue()))
        assert list(manifest.paths) == [row["path"] for row in rows]
        assert manifest.ids.tolist() == list(range(len(rows)))
        found = [manifest.class_names[label] for label in manifest.labels]
        assert found == [str(int(row["label"])) if row["label"].isdecimal() else row["label"] for row in rows]
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
