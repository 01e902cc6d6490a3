"""Manifest: its checks, its hash, its subsets and its summary."""

from pathlib import Path

import numpy as np
import pytest

from hgsl.common.errors import InputError
from hgsl.data.build_manifest import make_manifest, number_groups
from hgsl.data.manifest import Manifest
from hgsl.data.overview import summary, verify_files


def small(**changes: object) -> Manifest:
    columns = {
        "paths": ["a/1.jpg", "a/2.jpg", "b/1.jpg", "b/2.jpg"],
        "labels": [0, 0, 1, 1],
        "class_names": ["a", "b"],
        "split": ["train", "train", "test", "test"],
    }
    return make_manifest("toy", Path("photos"), **(columns | changes))


def test_defaults_make_every_row_query_and_gallery() -> None:
    manifest = small(split=None)
    assert manifest.is_query.all()
    assert manifest.is_gallery.all()
    assert manifest.split.tolist() == [""] * 4
    assert manifest.ids.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"paths": [], "labels": [], "split": []}, "no images found in photos"),
        ({"labels": [0, 0, 1]}, "3 labels for 4 images"),
        ({"labels": [0, 0, 1, 2]}, r"row 3 \(b/2.jpg\) has label 2, outside 0..1"),
        ({"paths": ["a/1.jpg", "../2.jpg", "b", "c"]}, r"row 1 has the path '../2.jpg', which is not inside"),
        ({"paths": ["a/1.jpg", "x", "b", "/etc/passwd"]}, "row 3 has the path '/etc/passwd'"),
        ({"paths": ["a/1.jpg", "a/x/../../../2.jpg", "b", "c"]}, "not inside the data root"),
        ({"paths": ["a/1.jpg", "", "b", "c"]}, "not inside the data root"),
        ({"paths": ["a/1.jpg", "x", "b", "./a/1.jpg"]}, "listed twice, in row 0 and row 3, as 'a' and as 'b'"),
        ({"paths": ["a/1.jpg", "a//1.jpg", "b", "c"]}, "listed twice, in row 0 and row 1, both times as 'a'"),
        ({"boxes": [[0, 0, 5, 5], [0, 0, 5, 5], [3, 0, 3, 5], [0, 0, 1, 1]]}, r"row 2 \(b/1.jpg\) has a box without"),
        ({"boxes": [[0, 0, 5, float("nan")]] * 4}, "row 0"),
        ({"boxes": [[0, 0, 5]] * 4}, r"boxes have the shape \(4, 3\), expected \(4, 4\)"),
        ({"labels": ["a", "a", "b", "b"]}, "labels must be one integer per image, found <U1"),
        ({"labels": [0.0, 0.5, 1.0, 1.0]}, "labels must be one integer per image, found float64"),
        ({"groups": [1.0, float("nan"), 1.0, 1.0]}, "groups must be one integer per image, found float64"),
        ({"split": ["train", "train", "test", "validation"]}, "the split 'validation' is none of train, val, test"),
    ],
)
def test_invalid_rows_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        small(**changes)


@pytest.mark.parametrize("dtype", [np.int8, np.int32, np.uint64])
def test_labels_and_groups_of_any_integer_type(dtype: type) -> None:
    manifest = small(labels=np.array([0, 0, 1, 1], dtype), groups=[-(2**63), -1, 0, 2**63 - 1])
    assert manifest.labels.dtype == np.int64
    assert manifest.labels.tolist() == [0, 0, 1, 1]
    assert manifest.groups is not None
    assert manifest.groups.tolist() == [-(2**63), -1, 0, 2**63 - 1]
    large = small(groups=np.array([2**64 - 1, 2**63, 5, 2**63], np.uint64)).groups
    assert large is not None
    assert np.array_equal(large[:, None] == large, np.array([3, 1, 2, 1])[:, None] == [3, 1, 2, 1])


def test_rows_without_a_group_share_none() -> None:
    groups = number_groups(["b", None, "a", None, "b"])
    assert groups.tolist() == [1, 2, 0, 3, 1]


def test_errors_name_the_source_of_a_row() -> None:
    with pytest.raises(InputError, match=r"toy: birds.csv, line 9 \(b/2.jpg\) has label 2"):
        small(labels=[0, 0, 1, 2], locate=lambda row: f"birds.csv, line {2 * row + 3}")


def test_one_image_may_have_two_boxes() -> None:
    manifest = small(paths=["a.jpg"] * 2 + ["b.jpg"] * 2, boxes=[[0, 0, 5, 5], [5, 0, 9, 5]] * 2)
    assert len(manifest) == 4
    with pytest.raises(InputError, match="row 0 and row 1"):
        small(paths=["a.jpg"] * 2 + ["b.jpg"] * 2, boxes=[[0, 0, 5, 5]] * 4)


def test_subset_keeps_ids_labels_and_columns() -> None:
    manifest = small(boxes=np.arange(16).reshape(4, 4), groups=[4, 5, 6, 7])
    test = manifest.subset("test")
    assert test.paths == ("b/1.jpg", "b/2.jpg")
    assert test.ids.tolist() == [2, 3]
    assert test.labels.tolist() == [1, 1]
    assert test.class_names == ("a", "b")
    assert test.boxes is not None
    assert test.boxes.tolist() == [[8, 9, 10, 11], [12, 13, 14, 15]]
    assert test.groups is not None
    assert test.groups.tolist() == [6, 7]
    assert manifest.subset("all") is manifest


def test_an_empty_or_unknown_split_is_refused() -> None:
    with pytest.raises(InputError, match=r"no 'val' images, only train, test: set data\.val_share"):
        small().subset("val")
    with pytest.raises(InputError, match="did you mean 'test'"):
        small().subset("tests")


def test_the_hash_depends_on_rows_and_roles_alone() -> None:
    base = small(boxes=[[0, 0, 5, 5]] * 4)
    same = [
        make_manifest("other", Path("/elsewhere"), base.paths, base.labels, base.class_names, split=base.split),
        small(labels=[1, 1, 0, 0], class_names=["b", "a"]),  # the numbering of classes is no part of the split
    ]
    assert {manifest.split_hash for manifest in same} == {base.split_hash}
    different = [
        small(paths=["a/1.jpg", "a/2.jpg", "b/1.jpg", "b/3.jpg"]),
        small(labels=[0, 1, 0, 1]),
        small(split=["train", "test", "train", "test"]),
        small(is_query=[True, True, True, False]),
        small(is_gallery=[True, True, True, False]),
        small(protocol="zero-shot"),
        base.subset("test"),
    ]
    hashes = [manifest.split_hash for manifest in different]
    assert len({*hashes, base.split_hash}) == len(hashes) + 1
    assert len(base.split_hash) == 16
    int(base.split_hash, 16)


def test_the_hash_is_the_same_in_every_version() -> None:
    """Reports of different versions are compared by their hashes."""
    assert small().split_hash == "6fa6ace49c38f8e8"


def test_verify_files_names_the_first_ten_paths(tmp_path: Path) -> None:
    paths = [f"{i:02}.jpg" for i in range(14)]
    (tmp_path / "03.jpg").touch()
    manifest = make_manifest("toy", tmp_path, paths, [0] * 14, ["a"], split=["train"] * 2 + ["test"] * 12)
    with pytest.raises(FileNotFoundError, match=r"13 of 14 images are missing in .*: 00.jpg.*, 10.jpg and 3 more"):
        verify_files(manifest)
    with pytest.raises(FileNotFoundError, match=r"11 of 12 .*: 02.jpg, 04.jpg"):
        verify_files(manifest.subset("test"))
    for path in paths:
        (tmp_path / path).touch()
    verify_files(manifest)


def test_summary_names_splits_by_their_hashes_and_skipped_files() -> None:
    manifest = make_manifest(
        "toy",
        Path("photos"),
        ["a/1.jpg", "a/2.jpg", "b/1.jpg", "c/1.jpg", "c/2.jpg"],
        [0, 0, 1, 2, 2],
        ["a", "b", "c"],
        protocol="query-gallery",
        split=["train"] * 3 + ["test"] * 2,
        is_query=[True, True, True, True, False],
        is_gallery=[True, True, True, False, True],
        skipped=[
            ("x.txt", "not an image file (.txt)"),
            ("y.txt", "not an image file (.txt)"),
            ("d/", "a class folder"),
        ],
        notes=["cropped to boxes"],
    )
    lines = [" ".join(line.split()) for line in summary(manifest).splitlines()]
    hashes = {split: manifest.subset(split).split_hash for split in ("train", "test")}
    assert lines[:3] == [
        "toy, query-gallery protocol",
        f"train 2 classes 3 images split hash {hashes['train']}",
        f"test 1 class 2 images (1 query, 1 gallery) split hash {hashes['test']}",
    ]
    assert "1 class has a single image, which has no match as a query: b" in lines
    assert "2 skipped, not an image file (.txt): x.txt, y.txt" in lines
    assert "1 skipped, a class folder: d/" in lines
    assert "note: cropped to boxes" in lines
