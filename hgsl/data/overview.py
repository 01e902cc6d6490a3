"""What a manifest holds, in words, and whether its files are there."""

from collections.abc import Sequence

import numpy as np

from hgsl.data.manifest import SPLITS, Manifest


def summary(manifest: Manifest) -> str:
    """What was found, as the few lines that a command prints first: classes, images, skipped and why, lone images."""
    lines = [f"{manifest.name}, {manifest.protocol or 'no'} protocol, split {manifest.split_hash}"]
    for split in (*SPLITS, ""):
        rows = manifest.split == split
        if np.any(rows):
            line = (
                f"  {split or 'images':6} {len(np.unique(manifest.labels[rows])):>6,} classes {rows.sum():>8,} images"
            )
            if not np.array_equal(manifest.is_query[rows], manifest.is_gallery[rows]):
                line += f" ({(manifest.is_query & rows).sum():,} query, {(manifest.is_gallery & rows).sum():,} gallery)"
            lines.append(line)
    lone = lone_classes(manifest)
    if lone:
        have = "class has" if len(lone) == 1 else "classes have"
        lines.append(f"  {len(lone)} {have} a single image, which can be found but cannot ask: {_some(lone)}")
    reasons = sorted({reason for _, reason in manifest.skipped})
    for reason in reasons:
        paths = [path for path, why in manifest.skipped if why == reason]
        lines.append(f"  {len(paths)} skipped, {reason}: {_some(paths)}")
    return "\n".join(lines + [f"  note: {note}" for note in manifest.notes])


def lone_classes(manifest: Manifest) -> list[str]:
    """The names of the classes with exactly one image."""
    counts = np.bincount(manifest.labels, minlength=len(manifest.class_names))
    return [manifest.class_names[i] for i in np.flatnonzero(counts == 1)]


def missing_files(manifest: Manifest) -> list[int]:
    """The positions of the rows whose file is not there."""
    if manifest.render is not None:
        return []
    return [i for i, path in enumerate(manifest.paths) if not (manifest.root / path).is_file()]


def verify_files(manifest: Manifest) -> None:
    """Checks that the file of every row is there; call it before the first batch.

    Raises:
        FileNotFoundError: Some are not; the message gives the number and the first ten rows.
    """
    missing = missing_files(manifest)
    if missing:
        rows = _some([f"row {manifest.ids[i]} {manifest.paths[i]}" for i in missing], 10)
        raise FileNotFoundError(
            f"{manifest.name}: {len(missing):,} of {len(manifest):,} images are not in {manifest.root}: {rows}"
        )


def _some(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")
