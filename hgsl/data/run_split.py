"""The split of a run: its images as they are recorded, found again in a data set that may have changed since."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
from PIL import Image

from hgsl.common.locations import Location, remote_states
from hgsl.common.split_record import SplitRecord
from hgsl.data.files.fingerprints import UNREADABLE, file_fingerprint
from hgsl.data.manifest import Manifest
from hgsl.data.overview import first_names
from hgsl.data.protocols import CROPPED

PART = 256  # images that one thread takes at a time
READERS = 16  # threads, which hide the latency of a network share
Key = tuple[str, tuple[float, ...]]  # path and box


@dataclass(frozen=True)
class Changes:
    """Differences of a data set from the recorded one.

    Attributes:
        gone: Split -> paths of recorded images that are not there.
        changed: Split -> paths of recorded images whose file has other content.
        new: Paths of images that are not recorded, of recorded classes.
        new_classes: Class that is not recorded -> number of its images.
        relabeled: Paths of recorded images whose class is another one.
    """

    gone: dict[str, list[str]] = field(default_factory=dict)
    changed: dict[str, list[str]] = field(default_factory=dict)
    new: list[str] = field(default_factory=list)
    new_classes: dict[str, int] = field(default_factory=dict)
    relabeled: list[str] = field(default_factory=list)

    def losses(self) -> list[str]:
        """Sentences on recorded images that are not there, or not as they were."""
        return [
            f"{len(paths):,} {split} {_images(paths)} {state} since the training: {first_names(paths)}"
            for state, by_split in (("gone", self.gone), ("changed", self.changed))
            for split, paths in by_split.items()
        ]

    def additions(self) -> list[str]:
        """Sentences on images that are not of the run."""
        sentences = []
        if self.new_classes:
            count, images = len(self.new_classes), sum(self.new_classes.values())
            classes = "class is" if count == 1 else "classes are"
            sentences.append(
                f"{count:,} {classes} new since the training and left out, with {images:,} "
                f"image{'s' if images > 1 else ''}: {first_names(list(self.new_classes))}"
            )
        if self.new:
            what = f"{len(self.new):,} {_images(self.new)} new since the training and left out"
            sentences.append(f"{what}: {first_names(self.new)}")
        if self.relabeled:
            sentences.append(
                f"{len(self.relabeled):,} images have another class since the training, and count as of the one that "
                f"they had: {first_names(self.relabeled)}"
            )
        return sentences


def record_of(manifest: Manifest) -> SplitRecord:
    """The record of a manifest whose files exist."""
    return SplitRecord(
        protocol=manifest.protocol,
        notes=tuple(note for note in manifest.notes if note != CROPPED),
        class_names=manifest.class_names,
        paths=manifest.paths,
        fingerprints=tuple(file_fingerprints(manifest)),
        labels=manifest.labels,
        split=manifest.split,
        is_query=manifest.is_query,
        is_gallery=manifest.is_gallery,
        boxes=_boxes(manifest),
    )


def restore(record: SplitRecord, listing: Manifest) -> tuple[Manifest, Changes]:
    """Returns the recorded images that ``listing`` still has, in their recorded roles, and what has changed.

    An image is the same if its path, its box and the fingerprint of its file are. Ids are row numbers in the record, so
    that an image keeps its id whatever was added or removed. Groups are those of the listing.

    Args:
        record: Of the run.
        listing: The data set as it is now, whatever its split.
    """
    positions = {key: row for row, key in enumerate(_keys(listing.paths, _boxes(listing)))}
    fingerprints = file_fingerprints(listing)
    changes = Changes()
    recorded_rows, rows = [], []
    for number, key in enumerate(_keys(record.paths, record.boxes)):
        row = positions.pop(key, None)
        if not record.split[number]:  # skipped as broken at the start of the run, whatever became of it
            continue
        if row is None:
            changes.gone.setdefault(str(record.split[number]), []).append(key[0])
        elif fingerprints[row] != record.fingerprints[number]:
            changes.changed.setdefault(str(record.split[number]), []).append(key[0])
        else:
            recorded_rows.append(number)
            rows.append(row)
            if listing.class_names[listing.labels[row]] != record.class_names[record.labels[number]]:
                changes.relabeled.append(key[0])
    for (path, _), row in positions.items():
        name = listing.class_names[listing.labels[row]]
        if name in record.class_names:
            changes.new.append(path)
        else:
            changes.new_classes[name] = changes.new_classes.get(name, 0) + 1
    return _with_roles(record, listing, np.array(recorded_rows, np.int64), np.array(rows, np.int64)), changes


def shared_images(record: SplitRecord, manifest: Manifest, split: str) -> int:
    """The number of images of ``manifest`` whose content is that of an image in this split of the record.

    Drawn images, which have no file, are compared by path.
    """
    recorded = {
        fingerprint or path
        for path, fingerprint, of in zip(record.paths, record.fingerprints, record.split, strict=True)
        if of == split
    }
    images = zip(manifest.paths, file_fingerprints(manifest), strict=True)
    return sum((fingerprint or path) in recorded for path, fingerprint in images)


def file_fingerprints(manifest: Manifest) -> list[str]:
    """The fingerprint of each file, see :mod:`hgsl.data.files.fingerprints`; empty where images are drawn.

    That of a file at an address is its size and the checksum of its version, as the store or server states it.

    Raises:
        InputError: A server or store of an address cannot be asked, or a Parquet file is damaged.
    """
    if manifest.render is not None:
        return [""] * len(manifest)
    if manifest.content is not None:
        return manifest.content.fingerprints(manifest.ids.tolist())
    locations = [manifest.location(row) for row in range(len(manifest))]
    remote = remote_states(locations)
    parts = [locations[start : start + PART] for start in range(0, len(manifest), PART)]
    with ThreadPoolExecutor(READERS) as pool:
        fingerprints = pool.map(lambda part: [_fingerprint(location, remote) for location in part], parts)
        return list(chain.from_iterable(fingerprints))


def _fingerprint(location: Location, remote: Mapping[str, str]) -> str:
    return file_fingerprint(location) if isinstance(location, Path) else remote.get(str(location), UNREADABLE)


def _boxes(manifest: Manifest) -> tuple[tuple[float, ...], ...] | None:
    return None if manifest.boxes is None else tuple(map(tuple, manifest.boxes.tolist()))


def _keys(paths: Sequence[str], boxes: Sequence[tuple[float, ...]] | None) -> list[Key]:
    return list(zip(paths, boxes or [()] * len(paths), strict=True))


def _with_roles(record: SplitRecord, listing: Manifest, numbers: np.ndarray, rows: np.ndarray) -> Manifest:
    part, render = listing.take(rows), listing.render
    listing_ids = np.zeros(numbers.max(initial=-1) + 1, np.int64)  # by recorded id
    listing_ids[numbers] = part.ids
    row_of = dict(zip(numbers.tolist(), part.ids.tolist(), strict=True))
    return replace(
        part,
        protocol=record.protocol,
        labels=record.labels[numbers],
        class_names=record.class_names,
        split=record.split[numbers],
        is_query=record.is_query[numbers],
        is_gallery=record.is_gallery[numbers],
        ids=numbers,
        notes=record.notes,
        render=None if render is None else partial(_render, render, row_of),
        content=None if part.content is None else part.content.take(listing_ids),
    )


def _render(render: Callable[[int], Image.Image], row_of: Mapping[int, int], image: int) -> Image.Image:
    return render(row_of[image])


def _images(paths: Sequence[str]) -> str:
    return "image is" if len(paths) == 1 else "images are"
