"""Protocols: class-disjointness, the shares, the folds, and the errors."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hgsl.common.errors import InputError
from hgsl.data.build_manifest import make_manifest
from hgsl.data.manifest import Manifest
from hgsl.data.protocols import apply_protocol, cut_to_boxes, cut_validation


def make(classes: int, images: int = 3, **columns: object) -> Manifest:
    labels = np.repeat(np.arange(classes), images)
    paths = [f"{label}/{i}.jpg" for i, label in enumerate(labels)]
    return make_manifest("toy", Path("photos"), paths, labels, [f"c{i}" for i in range(classes)], **columns)


def classes_of(manifest: Manifest, split: str) -> list[int]:
    return np.unique(manifest.labels[manifest.split == split]).tolist()


@given(
    classes=st.integers(4, 60),
    test_share=st.floats(0.01, 0.99),
    val_share=st.sampled_from([0.0, 0.1, 0.5]),
)
def test_zero_shot_is_class_disjoint_ordered_and_complete(classes: int, test_share: float, val_share: float) -> None:
    manifest = apply_protocol(make(classes), "zero-shot", test_share)
    train, test = classes_of(manifest, "train"), classes_of(manifest, "test")
    assert train + test == list(range(classes))
    assert min(len(train), len(test)) >= 2
    if 2 <= int(classes * test_share + 1e-9) <= classes - 2:
        assert len(test) == int(classes * test_share + 1e-9)
    if val_share and len(train) >= 4:
        cut = cut_validation(manifest, val_share)
        assert classes_of(cut, "train") + classes_of(cut, "val") == train
        assert classes_of(cut, "test") == test
        assert len(classes_of(cut, "val")) == max(int(len(train) * val_share), 2)


def test_odd_number_of_classes_trains_the_larger_half() -> None:
    manifest = apply_protocol(make(17), "zero-shot")
    assert (len(classes_of(manifest, "train")), len(classes_of(manifest, "test"))) == (9, 8)


def test_folds_cover_the_training_classes_once() -> None:
    manifest = apply_protocol(make(22), "zero-shot")
    folds = [cut_validation(manifest, val_fold=fold) for fold in range(4)]
    assert [label for fold in folds for label in classes_of(fold, "val")] == list(range(11))
    for fold in folds:
        assert not set(classes_of(fold, "val")) & set(classes_of(fold, "train"))
        assert classes_of(fold, "test") == list(range(11, 22))
    assert len({fold.split_hash for fold in folds}) == 4
    assert len({fold.subset("test").split_hash for fold in folds}) == 1  # test stays comparable


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"val_share": 0.2, "val_fold": 1}, "val_share=0.2 and val_fold=1 both choose validation classes"),
        ({"val_share": 1.5}, "val_share 1.5 must be between"),
        ({"val_fold": 4}, "val_fold 4 of 4 must be 0 to 3"),
        ({"val_fold": 0, "val_folds": 1}, "at least 2 folds"),
        ({"val_share": 0.95}, "9 of 10 training classes for validation, but 2 are needed on either side"),
    ],
)
def test_errors_of_validation(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        cut_validation(apply_protocol(make(20), "zero-shot"), **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("classes", "arguments", "way_out"),
    [
        (6, {"val_share": 0.2}, "give more classes, or a smaller data.test_share"),
        (6, {"val_fold": 0}, "give more classes, or a smaller data.test_share"),
        (12, {"val_fold": 3}, "give more classes, or val_share in place of val_fold, such as 0.2"),
        (20, {"val_share": 0.95}, "change val_share"),
    ],
)
def test_the_way_out_of_too_few_validation_classes_works(classes: int, arguments: dict[str, Any], way_out: str) -> None:
    with pytest.raises(InputError, match=f"2 are needed on either side: {way_out}$"):
        cut_validation(apply_protocol(make(classes), "zero-shot"), **arguments)
    if "test_share" in way_out:
        manifest = cut_validation(apply_protocol(make(classes), "zero-shot", test_share=0.3), val_share=0.2)
    else:
        manifest = cut_validation(apply_protocol(make(classes), "zero-shot"), val_share=0.2)
    assert len(classes_of(manifest, "val")) == 2


def test_too_few_usable_classes_are_refused() -> None:
    with pytest.raises(
        InputError, match="3 classes with two images or more in photos, but a class-disjoint split needs 4"
    ):
        apply_protocol(make(3), "zero-shot")
    with pytest.raises(InputError, match="0 classes"):
        apply_protocol(make(9, images=1), "zero-shot")


def test_a_half_without_pairs_is_refused() -> None:
    labels = [0, 1, 2, 3, 4, 4, 5, 5, 6, 6, 7, 7]
    lone = make_manifest("toy", Path("p"), [str(i) for i in range(12)], labels, list("abcdefgh"))
    with pytest.raises(InputError, match="fewer than 2 of the 4 train classes have two images"):
        apply_protocol(lone, "zero-shot")


def test_a_given_class_disjoint_split_is_kept() -> None:
    given_split = ["test"] * 6 + ["train"] * 6
    manifest = apply_protocol(make(4, protocol="zero-shot", split=given_split), "zero-shot")
    assert manifest.split.tolist() == given_split
    with pytest.raises(InputError, match=r"test_share 0.9 has no effect, as toy has a split of its own for zero-shot"):
        apply_protocol(make(4, protocol="zero-shot", split=given_split), "zero-shot", 0.9)
    with pytest.raises(InputError, match=r"1 class \(c0\) both in train and in test, which zero-shot forbids"):
        apply_protocol(make(4, protocol="zero-shot", split=["train"] + ["test"] * 5 + ["train"] * 6), "zero-shot")
    with pytest.raises(InputError, match="toy has 12 train images, but zero-shot needs a train and a test split"):
        apply_protocol(make(4, protocol="zero-shot", split=["train"] * 12), "zero-shot")


def test_a_split_of_images_is_kept_by_closed_set_and_noted_by_zero_shot() -> None:
    official = make(4, protocol="closed-set", split=["train", "test", "val"] * 4)
    zero_shot, closed = apply_protocol(official, "zero-shot"), apply_protocol(official, "closed-set")
    assert classes_of(zero_shot, "test") == [2, 3]
    assert zero_shot.notes == (
        "zero-shot splits by class, not by the split of images that the data has "
        "(4 train and 4 val and 4 test images); closed-set keeps that one",
    )
    assert closed.split.tolist() == ["train", "test", "val"] * 4
    assert closed.notes == ()
    with pytest.raises(InputError, match="closed-set has no class-disjoint validation"):
        cut_validation(apply_protocol(official, "closed-set"), 0.5)


@pytest.mark.parametrize(
    ("protocol", "split"), [("zero-shot", ["train"] * 6 + ["val"] * 6), ("closed-set", ["train", "val", "train"] * 4)]
)
def test_without_test_images_the_validation_images_are_the_test_split(protocol: str, split: list[str]) -> None:
    manifest = apply_protocol(make(4, protocol=protocol, split=split), protocol)
    assert manifest.split.tolist() == [name.replace("val", "test") for name in split]
    assert manifest.notes == ("the data has no test split: its validation images are the test split",)


def test_validation_images_without_test_images_are_no_test_split_of_zero_shot() -> None:
    manifest = apply_protocol(make(4, protocol="closed-set", split=["train", "val", "train"] * 4), "zero-shot")
    (note,) = manifest.notes
    assert "not by the split of images that the data has (8 train and 4 val images)" in note


def test_errors_of_protocols() -> None:
    with pytest.raises(InputError, match="did you mean 'zero-shot'"):
        apply_protocol(make(4), "zeroshot")
    with pytest.raises(InputError, match="toy has no split, but closed-set needs a train and a test split of its own"):
        apply_protocol(make(4), "closed-set")
    disjoint = make(4, protocol="zero-shot", split=["train"] * 6 + ["test"] * 6)
    with pytest.raises(InputError, match=r"2 classes \(c2, c3\) in test without a training image"):
        apply_protocol(disjoint, "closed-set")
    with pytest.raises(InputError, match="does not distinguish queries from gallery"):
        apply_protocol(disjoint, "query-gallery")
    with pytest.raises(InputError, match=r"test_share 1.0 must be between"):
        apply_protocol(make(4), "zero-shot", 1.0)
    with pytest.raises(InputError, match="toy has no boxes"):
        cut_to_boxes(make(4))


def test_cropping_to_boxes_is_noted_and_changes_the_hash() -> None:
    manifest = make(4, boxes=np.tile([1, 2, 3, 4], (12, 1)))
    cut = cut_to_boxes(manifest)
    assert cut.notes == ("cropped to boxes",)
    assert cut.split_hash != manifest.split_hash
