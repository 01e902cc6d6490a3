"""Protocols: the split of a data set into training, validation, queries and gallery."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from hgsl.common.errors import InputError, unknown
from hgsl.data.manifest import SPLITS, Manifest

PROTOCOLS = ("zero-shot", "closed-set", "query-gallery")
TEST_SHARE = 0.5  # default
ALL_TRAIN = "all images are training images (data.test_share 0): nothing is left to measure on"
CROPPED = "cropped to boxes"  # note of a manifest whose images are


def apply_protocol(manifest: Manifest, protocol: str, test_share: float = TEST_SHARE) -> Manifest:
    """Returns ``manifest`` with the split of ``protocol``.

    * ``zero-shot``: no class is in two splits. A class-disjoint split of the source is kept; otherwise the last
      ``test_share`` of the classes (rounded down) are the test split and the others the training split, and a note
      reports any other split of the source as unused.
    * ``closed-set``: the source's own split of the images; every test class has training images.
    * ``query-gallery``: the source's split, whose test images are divided into queries and gallery.

    In a source without test images the validation images become the test split, which a note reports. A ``test_share``
    of 0 makes every image a training image, whatever the protocol and the source's split.

    Raises:
        InputError: The protocol is unknown, or cannot be applied to this manifest.
    """
    if protocol not in PROTOCOLS:
        raise unknown("protocol", protocol, PROTOCOLS)
    if test_share == 0:
        notes = (*manifest.notes, ALL_TRAIN)
        return replace(manifest, protocol=protocol, split=np.full(len(manifest), "train", "<U5"), notes=notes)
    if protocol == "zero-shot" and manifest.protocol not in ("zero-shot", "query-gallery"):
        return _split_classes(manifest, test_share)
    manifest = _test_on_validation(manifest)
    if protocol == "zero-shot":
        _check_disjoint(manifest)
    else:
        _check_source_split(manifest, protocol)
    if test_share != TEST_SHARE:
        raise InputError(
            f"test_share {test_share} has no effect, as {manifest.name} has a split of its own for {protocol}: "
            "leave it out"
        )
    return replace(manifest, protocol=protocol)


def _check_source_split(manifest: Manifest, protocol: str) -> None:
    """Checks that the source's split can be used for closed-set or query-gallery."""
    test = manifest.split == "test"
    if not np.any(test) or not np.any(manifest.split == "train"):
        raise InputError(
            f"{manifest.name} has {_present(manifest)}, but {protocol} needs a train and a test split of its own: "
            "use zero-shot"
        )
    if protocol == "query-gallery":
        if np.array_equal(manifest.is_query[test], manifest.is_gallery[test]):
            raise InputError(
                f"{manifest.name} does not distinguish queries from gallery, which query-gallery needs: "
                "use zero-shot or closed-set"
            )
    else:
        unseen = np.setdiff1d(manifest.labels[test], manifest.labels[manifest.split == "train"])
        if len(unseen):
            raise InputError(
                f"{manifest.name}: {_names(manifest, unseen)} in test without a training image, which closed-set "
                "needs: use zero-shot"
            )


def _test_on_validation(manifest: Manifest) -> Manifest:
    """Turns validation images into test images where a source, such as ImageNet, has no test images."""
    if np.any(manifest.split == "test") or not np.any(manifest.split == "val"):
        return manifest
    note = "the data has no test split: its validation images are the test split"
    split = np.where(manifest.split == "val", "test", manifest.split)
    return replace(manifest, split=split, notes=(*manifest.notes, note))


def _split_classes(manifest: Manifest, test_share: float) -> Manifest:
    """Splits the classes for zero-shot; a split of the images, where the source has one, is noted."""
    if not 0 < test_share < 1:
        raise InputError(f"test_share {test_share} must be between 0 and 1: it is the share of the classes in test")
    counts = np.bincount(manifest.labels, minlength=len(manifest.class_names))
    present, usable = np.flatnonzero(counts), np.count_nonzero(counts >= 2)
    if usable < 4:
        raise InputError(
            f"{manifest.name}: {_classes(int(usable))} with two images or more in {manifest.root}, but a "
            "class-disjoint split needs 4 (2 in train, 2 in test): add classes or images"
        )
    test_count = min(max(int(len(present) * test_share + 1e-9), 2), len(present) - 2)
    is_test = np.isin(manifest.labels, present[-test_count:])
    for split, part in (("train", present[:-test_count]), ("test", present[-test_count:])):
        if np.count_nonzero(counts[part] >= 2) < 2:
            raise InputError(
                f"{manifest.name}: fewer than 2 of the {len(part)} {split} classes have two images: "
                "choose another seed or test_share"
            )
    notes = manifest.notes
    if np.any(manifest.split != ""):
        note = f"zero-shot splits by class, not by the split of images that the data has ({_present(manifest)})"
        notes = (*notes, f"{note}; closed-set keeps that one")
    return replace(manifest, protocol="zero-shot", split=np.where(is_test, "test", "train"), notes=notes)


def cut_validation(
    manifest: Manifest, val_share: float = 0.0, val_fold: int | None = None, val_folds: int = 4
) -> Manifest:
    """Moves some of the training classes to the split "val", so that model selection does not use test images.

    Args:
        manifest: Result of :func:`apply_protocol`.
        val_share: The last fraction of the training classes (rounded down, at least 2 classes); 0 for none.
        val_fold: In place of ``val_share``, the index of one of ``val_folds`` folds of consecutive training classes.
        val_folds: Number of such folds; 4 in "A Metric Learning Reality Check" (Musgrave et al., 2020).

    Raises:
        InputError: Both are given, a number is out of range, the protocol is not class-disjoint, or a part would
            have fewer than 2 classes.
    """
    if not val_share and val_fold is None:
        return manifest
    if val_share and val_fold is not None:
        raise InputError(f"val_share={val_share} and val_fold={val_fold} both choose validation classes: give one")
    if manifest.protocol == "closed-set":
        raise InputError("closed-set has no class-disjoint validation: leave out val_share and val_fold")
    if np.any(manifest.split == "val"):
        raise InputError(f"{manifest.name} has validation images of its own: leave out val_share and val_fold")
    classes = np.unique(manifest.labels[manifest.split == "train"])
    chosen = _last(classes, val_share) if val_fold is None else _fold(classes, val_fold, val_folds)
    if len(chosen) < 2 or len(classes) - len(chosen) < 2:
        if len(classes) < 4:
            way_out = "give more classes, or a smaller data.test_share"
        elif val_fold is not None and len(classes) < 2 * val_folds:
            way_out = "give more classes, or val_share in place of val_fold, such as 0.2"
        else:
            way_out = "change val_share"
        raise InputError(
            f"{manifest.name}: {len(chosen)} of {len(classes)} training classes for validation, but 2 are needed on "
            f"either side: {way_out}"
        )
    is_val = (manifest.split == "train") & np.isin(manifest.labels, chosen)
    return replace(manifest, split=np.where(is_val, "val", manifest.split))


def _last(classes: NDArray[np.int64], share: float) -> NDArray[np.int64]:
    if not 0 < share < 1:
        raise InputError(f"val_share {share} must be between 0 and 1: it is the share of the training classes")
    return classes[-max(int(len(classes) * share + 1e-9), 2) :]


def _fold(classes: NDArray[np.int64], fold: int, folds: int) -> NDArray[np.int64]:
    if folds < 2 or not 0 <= fold < folds:
        raise InputError(f"val_fold {fold} of {folds} must be 0 to {folds - 1}, of at least 2 folds")
    return np.array_split(classes, folds)[fold]


def cut_to_boxes(manifest: Manifest) -> Manifest:
    """Returns ``manifest`` with every image cropped to its box when it is read, and a note about it.

    Raises:
        InputError: The data set has no boxes.
    """
    if manifest.boxes is None:
        raise InputError(f"{manifest.name} has no boxes: leave out crop_to_boxes")
    return replace(manifest, crop_to_boxes=True, notes=(*manifest.notes, CROPPED))


def _check_disjoint(manifest: Manifest) -> None:
    split_of: dict[int, str] = {}
    for split in SPLITS:
        labels = np.unique(manifest.labels[manifest.split == split])
        shared = [label for label in labels if label in split_of]
        if shared:
            raise InputError(
                f"{manifest.name}: {_names(manifest, shared)} both in {split_of[shared[0]]} and in {split}, "
                "which zero-shot forbids: use closed-set or correct the split"
            )
        split_of.update(dict.fromkeys(labels.tolist(), split))
    if not {"train", "test"} <= set(split_of.values()):
        raise InputError(
            f"{manifest.name} has {_present(manifest)}, but zero-shot needs a train and a test split: add the "
            "other, or give the data without a split"
        )


def _present(manifest: Manifest) -> str:
    """Returns the number of images of each split in words, such as "4 train and 2 test images"."""
    counts = [f"{np.count_nonzero(manifest.split == split):,} {split}" for split in SPLITS if split in manifest.split]
    return f"{' and '.join(counts)} images" if counts else "no split"


def _names(manifest: Manifest, labels: Sequence[int] | NDArray[np.int64]) -> str:
    """Returns the number of classes and the first three names, such as "5 classes (a, b, c, ...)"."""
    names = ", ".join(manifest.class_names[i] for i in labels[:3])
    return f"{_classes(len(labels))} ({names}{', ...' if len(labels) > 3 else ''})"


def _classes(count: int) -> str:
    return "1 class" if count == 1 else f"{count:,} classes"
