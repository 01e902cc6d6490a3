"""Images that a run is evaluated on, or resumed with: those that it recorded, in a data set that may have changed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from hgsl.common import ranks
from hgsl.common.errors import InputError
from hgsl.common.split_record import SplitRecord, read_split_record
from hgsl.config import DataConfig
from hgsl.data import Manifest, verify_files
from hgsl.data.overview import first_names
from hgsl.data.protocols import cut_to_boxes, cut_validation
from hgsl.data.run_split import restore, shared_images
from hgsl.engine.folder.run_folder import CONFIG, SPLIT
from hgsl.engine.parts.build import build_manifest, list_run_images

# Options of a data set that change neither its images nor their split.
LOCATION_OPTIONS = ("image_root", "encoding", "group_column")


@dataclass(frozen=True)
class RunImages:
    """The images that a run is evaluated on.

    Attributes:
        manifest: The images, with their splits.
        notes: What must be known to read the scores; a command prints it first.
        trained_on: Counts of searched ``classes`` and ``images`` that the run was trained on, where it is not its own
            split that is evaluated; empty if there are none.
        record: The recorded images of the run; None if it has no record.
    """

    manifest: Manifest
    notes: tuple[str, ...] = ()
    trained_on: Mapping[str, int] | None = None
    record: SplitRecord | None = None

    def trained_validation(self) -> bool:
        """Whether classes of the validation split were trained on."""
        validation = _class_names(self.manifest, "val")
        return self.record is not None and bool(validation & self.record.trained_classes)

    def shares_test_images(self) -> bool:
        """Whether test images of the run are searched; also if it has no record."""
        searched = self.manifest.subset("test")
        return self.record is None or shared_images(self.record, searched, "test") > 0

    def metadata(self, notes: Sequence[str]) -> dict[str, Any]:
        """Entries of a report: these notes before those of the data set, and what was trained on."""
        trained_on = {"trained_on": dict(self.trained_on)} if self.trained_on else {}
        return {"notes": [*self.notes, *notes], **trained_on}

    def print_notes(self) -> None:
        """Prints the notes, in the first process."""
        for note in self.notes:
            ranks.print_main(f"note: {note}")


def images_of_run(data: DataConfig, folder: Path, *, validation: bool = True) -> RunImages:
    """Lists the images on which the run in ``folder`` is evaluated under these settings.

    They are the recorded ones, also where they were moved to another root. Settings that ask for another data set or
    another split are followed; the notes then state how much of what is searched was trained on.

    Args:
        data: The settings of the data.
        folder: The run folder.
        validation: Whether training or validation images of another data set are used. If not, no validation classes
            are cut from it, for which it may have too few.

    Raises:
        InputError: No test image of the run is left.
        FileNotFoundError: The data set is not there.
    """
    other = data if validation else replace(data, val_share=0.0, val_fold=None)
    record = read_split_record(folder)
    if record is None:
        note = f"{folder} has no {SPLIT}: nothing tells whether what is searched was trained on"
        return RunImages(build_manifest(other), (note,))
    run = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))["data"]
    if changed := _other_split(data, run):
        return _other_images(other, record, f"{changed} asks for another split than that of the run")
    listing = list_run_images(data)
    if data.root != run.get("root") and (reason := _other_data(record, listing)):
        return _other_images(other, record, reason)
    return _own_images(data, run, record, listing)


def images_of_resumed_run(data: DataConfig, folder: Path) -> Manifest | None:
    """Lists the recorded images of a run that is resumed; None where the run ended before it recorded them.

    Raises:
        InputError: Some are gone or have changed.
    """
    record = read_split_record(folder)
    if record is None:
        return None
    manifest, changes = restore(record, list_run_images(data))
    if losses := changes.losses():
        raise InputError(
            f"the images are not those of the start of the run, {'; '.join(losses)}: restore them, or start again with "
            "--overwrite"
        )
    for sentence in changes.additions():
        ranks.print_main(f"note: {sentence}")
    verify_files(manifest)
    return cut_to_boxes(manifest) if data.crop_to_boxes else manifest


def _own_images(data: DataConfig, run: Mapping[str, Any], record: SplitRecord, listing: Manifest) -> RunImages:
    """The split of the run, as far as its images are still there."""
    manifest, changes = restore(record, listing)
    if not np.any(record.split == "test"):
        raise InputError(
            "the run was trained on all of its images (data.test_share 0), so nothing is left to measure on: measure "
            "the recipe with a share, or this model on other images (--data.root, --data.test_share 0.5)"
        )
    if not np.any(manifest.split == "test"):
        paths = [path for path, split in zip(record.paths, record.split, strict=True) if split == "test"]
        raise InputError(
            f"none of the {len(paths):,} test images of the run is in {listing.root}, such as "
            f"{first_names(paths, 2)}: name the folder that they were moved to with --data.root (hgsl-export: --root)"
        )
    verify_files(manifest)
    if (data.val_share, data.val_fold) != (run.get("val_share") or 0, run.get("val_fold")):
        if run.get("val_share") or run.get("val_fold") is not None:
            manifest = replace(manifest, split=np.where(manifest.split == "val", "train", manifest.split))
        manifest = cut_validation(manifest, data.val_share, data.val_fold)
    if data.crop_to_boxes:
        manifest = cut_to_boxes(manifest)
    return RunImages(manifest, (*changes.losses(), *changes.additions()), record=record)


def _other_images(data: DataConfig, record: SplitRecord, reason: str) -> RunImages:
    """The images and split that the settings ask for, and what of it the run was trained on."""
    manifest = build_manifest(data)
    searched, trained = _class_names(manifest, "test"), record.trained_classes
    shared = sorted(searched & trained)
    images = shared_images(record, manifest.subset("test"), "train")
    if not shared and not images:
        return RunImages(manifest, (reason,), record=record)
    what = []
    if shared:
        what.append(
            f"{len(shared):,} of the {len(searched):,} searched classes have names of classes that the run was trained "
            f"on ({first_names(shared, 3)})"
        )
    if images:
        what.append(f"{images:,} of the searched images are training images of the run")
    note = f"{' and '.join(what)}, so the scores are not those of unseen classes"
    return RunImages(manifest, (note, reason), {"classes": len(shared), "images": images}, record)


def _other_split(data: DataConfig, run: Mapping[str, Any]) -> str:
    """The first setting that asks for another split than the run's, or an empty text."""
    for name in ("name", "protocol", "test_share"):
        if getattr(data, name) != run.get(name):
            return f"data.{name} {getattr(data, name)}"
    options, of_run = (
        {key: value for key, value in options.items() if key not in LOCATION_OPTIONS}
        for options in (data.options, run.get("options") or {})
    )
    return "" if options == of_run else "data.options"


def _other_data(record: SplitRecord, listing: Manifest) -> str:
    """Why another root does not hold the images of the run, or an empty text."""
    manifest, _ = restore(record, listing)
    present, count = np.count_nonzero(manifest.split == "test"), np.count_nonzero(record.split == "test")
    if present * 2 < count:
        return f"{listing.root} is another data set, with {present:,} of the {count:,} test images of the run"
    splits = dict(zip(listing.paths, listing.split.tolist(), strict=True))
    if record.protocol == listing.protocol and any(
        (splits[path] == "train") != (split == "train")
        for path, split in zip(manifest.paths, manifest.split.tolist(), strict=True)
        if splits[path] and split != "val"
    ):
        return f"{listing.root} has another split than the run"
    return ""


def _class_names(manifest: Manifest, split: str) -> set[str]:
    return {manifest.class_names[label] for label in np.unique(manifest.labels[manifest.split == split])}
