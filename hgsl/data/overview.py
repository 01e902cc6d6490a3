"""Overview of a manifest: a summary in a few lines, and a check that its files exist."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hgsl.common.files import as_text
from hgsl.common.locations import remote_states
from hgsl.data.manifest import SPLITS, Manifest


def summary(manifest: Manifest) -> str:
    """Summary lines: classes, images and hash of each split, classes with a single image, skipped files, notes."""
    lines = [f"{manifest.name}, {manifest.protocol or 'no'} protocol"]
    lines += [_split_line(manifest, split) for split in (*SPLITS, "") if np.any(manifest.split == split)]
    single = single_image_classes(manifest)
    if single:
        have = "class has" if len(single) == 1 else "classes have"
        lines.append(f"  {len(single)} {have} a single image, which has no match as a query: {first_names(single)}")
    for reason in sorted({reason for _, reason in manifest.skipped}):
        paths = [path for path, cause in manifest.skipped if cause == reason]
        lines.append(f"  {len(paths)} skipped, {reason}: {first_names(paths)}")
    return "\n".join(lines + [f"  note: {note}" for note in manifest.notes])


def _split_line(manifest: Manifest, split: str) -> str:
    part = manifest.take(np.flatnonzero(manifest.split == split))
    classes = len(np.unique(part.labels))
    name = split or ("unused" if np.any(manifest.split != "") else "images")
    line = f"  {name:6} {classes:>6,} {'class' if classes == 1 else 'classes':7} {len(part):>8,} images"
    if not np.array_equal(part.is_query, part.is_gallery):
        line += f" ({part.is_query.sum():,} query, {part.is_gallery.sum():,} gallery)"
    return f"{line}  split hash {part.split_hash}"


def single_image_classes(manifest: Manifest) -> list[str]:
    """The names of the classes with exactly one image."""
    counts = np.bincount(manifest.labels, minlength=len(manifest.class_names))
    return [manifest.class_names[i] for i in np.flatnonzero(counts == 1)]


def missing_files(manifest: Manifest) -> list[int]:
    """The positions of the rows whose file does not exist.

    Raises:
        InputError: A server or store of an address cannot be asked.
    """
    if manifest.render is not None:
        return []
    if manifest.content is not None:  # the manifest was read from the Parquet files
        return []
    locations = [manifest.location(row) for row in range(len(manifest))]
    remote = remote_states(locations)
    return [
        row
        for row, location in enumerate(locations)
        if not (location.is_file() if isinstance(location, Path) else location in remote)
    ]


def verify_files(manifest: Manifest) -> None:
    """Checks that the file of every row exists; call it before the first batch.

    Raises:
        FileNotFoundError: Some files are missing; the message has their number and the first ten paths.
        InputError: A server or store of an address cannot be asked.
    """
    missing = missing_files(manifest)
    if missing:
        counts = f"{len(missing):,} of {len(manifest):,}"
        paths = first_names([manifest.paths[i] for i in missing], 10)
        raise FileNotFoundError(f"{manifest.name}: {counts} images are missing {_where(manifest.root)}: {paths}")


def _where(root: Path | str) -> str:
    if isinstance(root, str):
        return f"at {root}"
    root = root.absolute()
    return f"in {root}" if root.is_dir() else f"since the folder {root} does not exist"


def first_names(names: Sequence[str], limit: int = 5) -> str:
    """The first names of a list, and the number of the others.

    >>> first_names(["a", "b", "c"], 2)
    'a, b and 1 more'
    """
    return ", ".join(map(as_text, names[:limit])) + (f" and {len(names) - limit:,} more" if len(names) > limit else "")
