"""Changes of a manifest: duplicates dropped, and the summary of what differs afterwards."""

from collections.abc import Sequence

import numpy as np

from hgsl.data.manifest import SPLITS, Manifest

PREFERRED = ("test", "val", "train", "")  # the split whose image of a group is kept, so that test splits stay the same


def preferred(manifest: Manifest, rows: Sequence[int]) -> int:
    """The row of a group of duplicates that is kept: of the test split, then val, then train; then the first."""
    return min(rows, key=lambda row: (PREFERRED.index(str(manifest.split[row])), row))


def drop_duplicates(manifest: Manifest, groups: Sequence[Sequence[int]]) -> Manifest:
    """The manifest with one row of each group.

    Args:
        manifest: The rows.
        groups: Rows that show the same image; see :func:`hgsl.data.duplicates.group_pairs`.
    """
    keep = np.ones(len(manifest), bool)
    for rows in groups:
        kept = preferred(manifest, rows)
        keep[[row for row in rows if row != kept]] = False
    return manifest.take(np.flatnonzero(keep))


def describe_change(before: Manifest, after: Manifest) -> str:
    """One line per split: images and split hash before and after."""
    lines = []
    for split in (*SPLITS, ""):
        counts = [int(np.count_nonzero(manifest.split == split)) for manifest in (before, after)]
        if not any(counts):
            continue
        old, new = (
            manifest.take(np.flatnonzero(manifest.split == split)).split_hash if count else "-"
            for manifest, count in zip((before, after), counts, strict=True)
        )
        change = f"split hash {old}, unchanged" if old == new else f"split hash {old} -> {new}"
        lines.append(f"  {split or 'images':6} {counts[0]:>8,} -> {counts[1]:>8,} images  {change}")
    return "\n".join(lines)
