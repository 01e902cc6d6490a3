"""Class folders as users have them: odd files, nested folders, single images, split folders."""

import gc
import os
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hgsl.common.errors import InputError
from hgsl.data import build_dataset, load_manifest, summary
from hgsl.search.indexing.labels import folder_labels

Photos = Callable[..., Path]


def touch(root: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"x")
    return root


def two_each(names: str, top: str = "") -> list[str]:
    return [f"{top}{name}/{i}.jpg" for name in names for i in (1, 2)]


def test_the_split_is_seeded_class_disjoint_and_in_halves(photo_folder: Photos) -> None:
    root = photo_folder(classes=9, images=3)
    train, test = (load_manifest("folder", root).subset(split) for split in ("train", "test"))
    assert (len(np.unique(train.labels)), len(np.unique(test.labels))) == (5, 4)
    assert not {path.split("/")[0] for path in train.paths} & {path.split("/")[0] for path in test.paths}
    assert sorted([*train.ids, *test.ids]) == list(range(27))
    again = load_manifest("folder", root)
    assert again.split_hash == load_manifest("folder", str(root), seed=0).split_hash
    assert len({load_manifest("folder", root, seed=seed).split_hash for seed in range(5)}) > 2
    assert len(np.unique(load_manifest("folder", root, test_share=0.25).subset("test").labels)) == 2


def test_dataset_remaps_labels_and_keeps_ids(photo_folder: Photos) -> None:
    manifest = load_manifest("folder", photo_folder(classes=6, images=2))
    for split in ("train", "test"):
        data = build_dataset("folder", manifest.root, split)
        assert data.num_classes == 3
        assert sorted(set(data.labels.tolist())) == [0, 1, 2]
        for index in range(len(data)):
            image, label, row = data[index]
            path = manifest.paths[row]
            assert data.class_names[label] == path.split("/")[0]
            assert np.array_equal(np.asarray(image), np.asarray(data.image(index)))
        assert data.ids.tolist() == np.flatnonzero(manifest.split == split).tolist()


def test_a_link_back_up_is_not_followed(tmp_path: Path) -> None:
    root = touch(tmp_path / "photos", *two_each("abcd"))
    for name, target in (("root", root), ("itself", root / "a")):
        (root / "a" / name).symlink_to(target)
    plain = touch(tmp_path / "plain", *two_each("abcd"))
    assert load_manifest("folder", root).paths == load_manifest("folder", plain).paths


def test_names_that_are_not_utf8_are_reported(tmp_path: Path) -> None:
    root = touch(tmp_path, *two_each("abcd"))
    for name in (b"a/\xff.jpg", b"\xfe/1.jpg", b"b/x.\xff"):
        touch(root, os.fsdecode(name))
    manifest = load_manifest("folder", root)
    assert len(manifest) == 8
    assert set(manifest.skipped) == {
        ("a/\\xff.jpg", "its name is not UTF-8"),
        ("\\xfe/1.jpg", "its name is not UTF-8"),
        ("\\xfe/", "a class folder without images"),
        ("b/x.\\xff", "not an image file (.\\xff)"),
    }
    assert "\\xff.jpg" in summary(manifest)


def test_skipped_files_are_reported(tmp_path: Path) -> None:
    root = touch(
        tmp_path, *two_each("abcd"), "a/deep/er/3.JPEG", "a/.hidden.jpg", "a/notes.txt", "b/Thumbs.db", "top.jpg"
    )
    touch(root, ".git/1.jpg", "lone/1.png", "@eaDir/1.jpg", "a/@eaDir/1.jpg/SYNOPHOTO_THUMB_XL.jpg")
    (root / "empty").mkdir()
    (root / "a" / "zero.jpg").touch()
    (root / "c" / "gone.jpg").symlink_to(root / "nowhere.jpg")
    manifest = load_manifest("folder", root)
    assert sorted(manifest.paths) == sorted([*two_each("abcd"), "a/deep/er/3.JPEG", "lone/1.png"])
    assert dict(manifest.skipped) == {
        "a/notes.txt": "not an image file (.txt)",
        "b/Thumbs.db": "not an image file (.db)",
        "top.jpg": "not in a class folder",
        "empty/": "a class folder without images",
        "a/zero.jpg": "an empty file",
        "c/gone.jpg": "a broken link",
    }
    assert "1 class has a single image, which has no match as a query: lone" in summary(manifest)


def test_links_to_other_folders_are_followed(tmp_path: Path) -> None:
    touch(tmp_path / "album", *two_each("abcd"))
    (tmp_path / "set").mkdir()
    for name in "abcd":
        (tmp_path / "set" / name).symlink_to(tmp_path / "album" / name)
    assert len(load_manifest("folder", tmp_path / "set")) == 8


def test_given_class_disjoint_split_is_kept(tmp_path: Path) -> None:
    root = touch(tmp_path, *two_each("ab", "train/"), *two_each("cd", "val/"), *two_each("ef", "test/"))
    manifest = load_manifest("folder", root)
    for split, names in (("train", {"a", "b"}), ("val", {"c", "d"}), ("test", {"e", "f"})):
        part = manifest.subset(split)
        assert {part.class_names[label] for label in part.labels} == names
    with pytest.raises(InputError, match="validation images of its own"):
        load_manifest("folder", root, val_share=0.5)


def test_a_split_of_images_is_closed_set(tmp_path: Path) -> None:
    root = touch(tmp_path, *two_each("abcd", "train/"), *two_each("abcd", "test/"))
    closed = load_manifest("folder", root, "closed-set")
    assert all(path.startswith(split) for path, split in zip(closed.paths, closed.split, strict=True))
    zero = load_manifest("folder", root)
    assert len(zero.class_names) == 4
    for label in range(4):
        assert len(set(zero.split[zero.labels == label])) == 1


def test_class_folders_with_the_name_of_a_split(tmp_path: Path) -> None:
    root = touch(tmp_path, *two_each(["train", "test", "bus", "car", "bike"]))
    manifest = load_manifest("folder", root)
    assert sorted(manifest.class_names) == ["bike", "bus", "car", "test", "train"]
    assert manifest.notes == (
        "the folder 'test' is a class here, not a split",
        "the folder 'train' is a class here, not a split",
    )


@pytest.mark.parametrize(
    "tops",
    [("train", "valid", "test"), ("Train", "Val", "TEST"), ("training", "validation", "testing")],
)
def test_split_folders_in_any_spelling_with_other_folders_beside_them(tmp_path: Path, tops: tuple[str, ...]) -> None:
    train, val, test = tops
    root = touch(tmp_path, *two_each("ab", f"{train}/"), *two_each("cd", f"{val}/"), *two_each("ef", f"{test}/"))
    touch(root, "docs/1.jpg", "extra/g/1.jpg", ".git/1.jpg")
    manifest = load_manifest("folder", root)
    assert sorted(manifest.class_names) == list("abcdef")
    for split, names in (("train", {"a", "b"}), ("val", {"c", "d"}), ("test", {"e", "f"})):
        part = manifest.subset(split)
        assert {part.class_names[label] for label in part.labels} == names
    reason = f"beside the split folders {', '.join(sorted(tops))}"
    assert manifest.skipped == (("docs/", reason), ("extra/", reason))
    labels = folder_labels([*manifest.paths, "docs/1.jpg", "extra/g/1.jpg"])  # the index of a search labels alike
    assert labels == {path: path.split("/")[1] for path in manifest.paths}


def test_validation_images_are_the_test_split_where_there_is_no_other(tmp_path: Path) -> None:
    root = touch(tmp_path, *two_each("abcd", "train/"), *two_each("abcd", "val/"))  # as ImageNet is laid out
    manifest = load_manifest("folder", root, "closed-set")
    assert manifest.split.tolist() == ["train"] * 8 + ["test"] * 8
    assert "note: the data has no test split: its validation images are the test split" in summary(manifest)


def test_a_split_that_zero_shot_does_not_use_is_noted(tmp_path: Path) -> None:
    root = touch(tmp_path, *two_each("abcd", "train/"), *two_each("abcd", "test/"))
    (note,) = load_manifest("folder", root).notes
    assert "not by the split of images that the data has (8 train and 8 test images)" in note


def test_two_folders_for_one_split_are_refused(tmp_path: Path) -> None:
    root = touch(tmp_path, *two_each("ab", "train/"), *two_each("cd", "val/"), *two_each("ef", "valid/"))
    with pytest.raises(InputError, match="two folders for the split val, 'val' and 'valid': keep one"):
        load_manifest("folder", root)
    one = touch(tmp_path / "one", *two_each("abcd", "train/"))
    with pytest.raises(InputError, match="folder has 8 train images, but zero-shot needs a train and a test split"):
        load_manifest("folder", one)


def test_errors_name_the_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"data root .*nowhere does not exist"):
        load_manifest("folder", tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"no images in class folders of .*; its own images are one class of the"):
        load_manifest("folder", touch(tmp_path / "flat", "1.jpg"))
    with pytest.raises(InputError, match=r"2 classes with two images or more in "):
        load_manifest("folder", touch(tmp_path / "few", *two_each("ab"), "c/1.jpg"))
    with pytest.raises(InputError, match="unknown option of data set folder 'sed': did you mean 'seed'"):
        load_manifest("folder", tmp_path / "few", sed=1)
    with pytest.raises(InputError, match="unknown data set 'foldr': did you mean 'folder'"):
        load_manifest("foldr", tmp_path)


def test_no_folder_stays_open(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    warnings.simplefilter("always", ResourceWarning)
    load_manifest("folder", touch(tmp_path, *two_each("abcd")))
    gc.collect()
    assert not [warning for warning in recwarn.list if warning.category is ResourceWarning]
