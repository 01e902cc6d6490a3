"""Who trains, who is searched, who asks: a protocol turns the rows of a data set into a split."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from hgsl.common.errors import InputError, unknown
from hgsl.data.manifest import Manifest

PROTOCOLS = ("zero-shot", "closed-set", "query-gallery")


def apply_protocol(manifest: Manifest, protocol: str, test_share: float = 0.5) -> Manifest:
    """Returns ``manifest`` with the split of ``protocol``.

    * ``zero-shot``: no class is both trained and searched. A split that the source made so is kept; otherwise the
      last ``test_share`` of the classes is searched (rounded down) and the others train.
    * ``closed-set``: the source's own split of the images; every class that is searched was trained.
    * ``query-gallery``: the source's split, whose test images either ask or are searched.

    Raises:
        InputError: The protocol is unknown, or these rows cannot follow it.
    """
    if protocol not in PROTOCOLS:
        raise unknown("protocol", protocol, PROTOCOLS)
    if protocol == "zero-shot":
        return _zero_shot(manifest, test_share)
    test = manifest.split == "test"
    if not np.any(test) or not np.any(manifest.split == "train"):
        raise InputError(f"{manifest.name} has no train and test split of its own for {protocol}: use zero-shot")
    if protocol == "query-gallery":
        if np.array_equal(manifest.is_query[test], manifest.is_gallery[test]):
            raise InputError(
                f"{manifest.name} does not tell queries from gallery, which query-gallery needs: "
                "use zero-shot or closed-set"
            )
    else:
        unseen = np.setdiff1d(manifest.labels[test], manifest.labels[manifest.split == "train"])
        if len(unseen):
            raise InputError(
                f"{manifest.name}: {_names(manifest, unseen)} in test have no training image, which closed-set needs: "
                "use zero-shot"
            )
    return replace(manifest, protocol=protocol)


def _zero_shot(manifest: Manifest, test_share: float) -> Manifest:
    if manifest.protocol in ("zero-shot", "query-gallery"):
        _check_disjoint(manifest)
        return replace(manifest, protocol="zero-shot")
    if not 0 < test_share < 1:
        raise InputError(f"test_share {test_share} must be between 0 and 1: it is the share of the classes to search")
    counts = np.bincount(manifest.labels, minlength=len(manifest.class_names))
    present, usable = np.flatnonzero(counts), np.count_nonzero(counts >= 2)
    if usable < 4:
        raise InputError(
            f"{manifest.name}: {usable} classes in {manifest.root} have two images or more, and a class-disjoint split "
            "needs 4 of them (2 to train, 2 to search): add classes or images"
        )
    tested = min(max(int(len(present) * test_share + 1e-9), 2), len(present) - 2)
    is_test = np.isin(manifest.labels, present[-tested:])
    for what, part in (("train", present[:-tested]), ("test", present[-tested:])):
        if np.count_nonzero(counts[part] >= 2) < 2:
            raise InputError(
                f"{manifest.name}: fewer than 2 of the {len(part)} {what} classes have two images: "
                "choose another seed or test_share"
            )
    return replace(manifest, protocol="zero-shot", split=np.where(is_test, "test", "train").astype("<U5"))


def cut_validation(
    manifest: Manifest, val_share: float = 0.0, val_fold: int | None = None, val_folds: int = 4
) -> Manifest:
    """Moves some of the training classes to the split "val", so that a model can be chosen without looking at test.

    Args:
        manifest: After :func:`apply_protocol`.
        val_share: The last fraction of the training classes (rounded down, at least 2 classes); 0 for none.
        val_fold: Instead, this one (from 0) of ``val_folds`` runs of consecutive training classes.
        val_folds: How many such folds; 4 in "A Metric Learning Reality Check" (Musgrave et al., 2020).

    Raises:
        InputError: Both are given, a number is out of range, the protocol is not class-disjoint, or a part would
            have fewer than 2 classes.
    """
    if not val_share and val_fold is None:
        return manifest
    if val_share and val_fold is not None:
        raise InputError(f"val_share={val_share} and val_fold={val_fold} are two ways to cut validation: give one")
    if manifest.protocol == "closed-set":
        raise InputError("closed-set has no class-disjoint validation: leave out val_share and val_fold")
    if np.any(manifest.split == "val"):
        raise InputError(f"{manifest.name} has validation images of its own: leave out val_share and val_fold")
    classes = np.unique(manifest.labels[manifest.split == "train"])
    chosen = _last(classes, val_share) if val_fold is None else _fold(classes, val_fold, val_folds)
    if len(chosen) < 2 or len(classes) - len(chosen) < 2:
        raise InputError(
            f"{manifest.name}: {len(classes)} training classes cannot give {len(chosen)} for validation, "
            "2 must be on either side"
        )
    is_val = (manifest.split == "train") & np.isin(manifest.labels, chosen)
    return replace(manifest, split=np.where(is_val, "val", manifest.split).astype("<U5"))


def _last(classes: NDArray[np.int64], share: float) -> NDArray[np.int64]:
    if not 0 < share < 1:
        raise InputError(f"val_share {share} must be between 0 and 1: it is the share of the training classes")
    return classes[-max(int(len(classes) * share + 1e-9), 2) :]


def _fold(classes: NDArray[np.int64], fold: int, folds: int) -> NDArray[np.int64]:
    if folds < 2 or not 0 <= fold < folds:
        raise InputError(f"val_fold {fold} of {folds} must be 0 to {folds - 1}, of at least 2 folds")
    return np.array_split(classes, folds)[fold]


def cut_to_boxes(manifest: Manifest) -> Manifest:
    """Returns ``manifest`` with every image cut to its box when it is read, and a note that says so.

    Raises:
        InputError: The data set has no boxes.
    """
    if manifest.boxes is None:
        raise InputError(f"{manifest.name} has no boxes: leave out crop_to_boxes")
    return replace(manifest, crop_to_boxes=True, notes=(*manifest.notes, "cropped to boxes"))


def _check_disjoint(manifest: Manifest) -> None:
    owner: dict[int, str] = {}
    for split in ("train", "val", "test"):
        labels = np.unique(manifest.labels[manifest.split == split])
        shared = [label for label in labels if label in owner]
        if shared:
            raise InputError(
                f"{manifest.name}: {_names(manifest, shared)} are both in {owner[shared[0]]} and in {split}, "
                "which zero-shot forbids: use closed-set or mend the split"
            )
        owner.update(dict.fromkeys(labels.tolist(), split))
    if "test" not in owner.values() or "train" not in owner.values():
        raise InputError(f"{manifest.name}: the split given with the data needs both train and test images")


def _names(manifest: Manifest, labels: Sequence[int] | NDArray[np.int64]) -> str:
    names = ", ".join(manifest.class_names[i] for i in labels[:3])
    return f"{len(labels)} classes ({names}{', ...' if len(labels) > 3 else ''})"
