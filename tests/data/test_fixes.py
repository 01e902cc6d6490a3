"""Fixes of a report page applied to a table, and duplicates left out of a split."""

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hgsl.cli.prepare_dataset import main
from hgsl.common.errors import InputError
from hgsl.data import load_manifest
from hgsl.data.build_manifest import make_manifest
from hgsl.data.changes import describe_change, drop_duplicates
from hgsl.data.duplicates import group_pairs
from hgsl.data.fixes import COLUMNS, Fix, apply_fixes, read_fixes
from hgsl.data.manifest import Manifest


def table(**columns: object) -> Manifest:
    """Two training and two test classes of two images: a0 a1 b0 b1 | c0 c1 d0 d1."""
    names = [f"{name}{number}" for name in "abcd" for number in range(2)]
    split = ["train"] * 4 + ["test"] * 4
    options = {"protocol": "zero-shot", "split": split, **columns}
    return make_manifest("toy", Path("root"), names, np.arange(8) // 2, list("abcd"), **options)  # type: ignore[arg-type]


def fix(path: str, mark: str, label: str = "", other: str = "") -> Fix:
    return Fix(path, mark, label, other, "line 2")


def test_a_corrected_label_moves_the_image_to_the_split_of_its_class() -> None:
    fixed = apply_fixes(table(), [fix("b1", "wrong label", "c")])
    assert fixed.class_names[fixed.labels[3]] == "c"
    assert fixed.split.tolist() == ["train"] * 3 + ["test"] * 5
    assert fixed.paths == table().paths
    closed = apply_fixes(table(protocol="closed-set", split=["train", "test"] * 4), [fix("b1", "wrong label", "c")])
    assert closed.split.tolist() == ["train", "test"] * 4


def test_an_image_moved_to_a_searched_class_becomes_gallery_and_no_query() -> None:
    query = [True] * 4 + [True, False] * 2
    gallery = [True] * 4 + [False, True] * 2
    manifest = table(protocol="query-gallery", is_query=query, is_gallery=gallery)
    fixed = apply_fixes(manifest, [fix("b1", "wrong label", "c"), fix("d0", "wrong label", "a")])
    assert (fixed.is_query[3], fixed.is_gallery[3]) == (False, True)
    assert (fixed.split[6], fixed.is_query[6], fixed.is_gallery[6]) == ("train", True, True)


def test_images_of_no_class_and_duplicates_are_left_out() -> None:
    fixes = [
        fix("a0", "wrong label"),
        fix("a0", "duplicate", other="a1"),  # a0 is left out already, so a1 stays
        fix("b0", "duplicate", other="c0"),  # of a pair across splits the test image stays
        fix("c0", "duplicate", other="d1"),
        fix("b1", "fine", other="d0"),
    ]
    assert apply_fixes(table(), fixes).paths == ("a1", "b1", "c0", "c1", "d0")


def test_one_row_of_a_group_stays_and_the_change_is_described() -> None:
    before = table()
    after = drop_duplicates(before, [[0, 1], [2, 4], [5, 7]])
    assert after.paths == ("a0", "b1", "c0", "c1", "d0")
    assert after.ids.tolist() == [0, 3, 4, 5, 6]
    lines = describe_change(before, after).splitlines()
    old, new = before.subset("test").split_hash, after.subset("test").split_hash
    assert f"4 ->        3 images  split hash {old} -> {new}" in lines[1]
    assert "unchanged" in describe_change(before, before)


def test_groups_connect_pairs() -> None:
    assert group_pairs([(3, 1), (9, 8), (1, 4), (1, 3)]) == [[1, 3, 4], [8, 9]]
    assert group_pairs([]) == []


@pytest.mark.parametrize(
    ("fixes", "message"),
    [
        ([fix("e0", "wrong label", "a")], "line 2: 'e0' is not an image of toy in root"),
        ([fix("a0", "duplicate", other="")], "line 2: '' is not an image"),
        ([fix("a0", "wrong label", "C")], "did you mean 'c'"),
        ([fix("a0", "wrong label", "b"), fix("a0", "wrong label", "c")], "a0 is 'c', but 'b' in line 2"),
    ],
)
def test_fixes_that_cannot_be_applied_are_named(fixes: list[Fix], message: str) -> None:
    with pytest.raises(InputError) as error:
        apply_fixes(table(), fixes)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"), [("a,b", "no table of fixes"), ("path,mark,label,other\nx,odd,,", "mark in")]
)
def test_a_table_of_another_form_is_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "fixes.csv"
    file.write_text(text + "\n")
    with pytest.raises(InputError, match=message):
        read_fixes(file)


def test_a_table_of_fixes_is_read_as_a_spreadsheet_saves_it(tmp_path: Path) -> None:
    file = tmp_path / "fixes.csv"
    file.write_text("path;mark;label;other\r\nä/1.jpg;wrong label;b;\r\n", encoding="utf-16")
    assert read_fixes(file) == [Fix("ä/1.jpg", "wrong label", "b", "", f"{file}, line 2")]
    file.write_text("path,mark,label,other\nä/1.jpg,fine,,b\n", encoding="latin-1")
    with pytest.raises(InputError, match=r"is not utf-8-sig text .*: save it as UTF-8$"):
        read_fixes(file)
    file.write_text("path,mark,label,other\nx,fine\n")
    with pytest.raises(InputError, match="line 2: not 4 values"):
        read_fixes(file)


def test_the_command_writes_the_fixed_table(
    photo_folder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, fixes, fixed = photo_folder(), tmp_path / "fixes.csv", tmp_path / "fixed.csv"
    before = load_manifest("folder", root)
    moved, left_out = (before.paths[row] for row in np.flatnonzero(before.split == "train")[[0, -1]])
    target = before.class_names[before.labels[before.split == "test"][0]]
    with fixes.open("w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, (moved, "wrong label", target, ""), (left_out, "wrong label", "", "")])
    assert main(["folder", "--root", str(root), "--fixes", str(fixes), "--manifest", str(fixed)]) == 0
    out = capsys.readouterr().out
    assert "1 label corrected, 1 image of no class left out" in out
    after = load_manifest("csv", fixed, image_root=str(root))
    assert f"-> {after.subset('test').split_hash}" in out
    assert len(after) == 23
    row = after.paths.index(moved)
    assert (after.class_names[after.labels[row]], after.split[row]) == (target, "test")
    assert len(list(root.rglob("*.jpg"))) == 24


def test_flags_that_need_others_say_so(photo_folder: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    words = ["folder", "--root", str(photo_folder())]
    assert main([*words, "--drop-duplicates"]) == 2
    assert main([*words, "--similarity", "0.9"]) == 2
    assert main([*words, "--duplicates", "page.html", "--drop-duplicates"]) == 2
    assert main([*words, "--fixes", "fixes.csv"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert [line.split(":")[1].split()[0] for line in errors] == [
        "--drop-duplicates",
        "--similarity",
        "--drop-duplicates",
        "--fixes",
    ]
    assert all("--manifest FILE.csv" in error for error in errors[2:])
