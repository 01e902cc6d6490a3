"""Fixes of a data set: the marks of a report page (``fixes.csv``), applied to a manifest, never to image files."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from hgsl.common.errors import InputError, unknown
from hgsl.common.tables import count_of
from hgsl.data.adapters.table import check_lengths, parse_table
from hgsl.data.changes import drop_duplicates
from hgsl.data.duplicates import group_pairs
from hgsl.data.manifest import Manifest

COLUMNS = ("path", "mark", "label", "other")
WRONG_LABEL, DUPLICATE, FINE = "wrong label", "duplicate", "fine"
MARKS = (WRONG_LABEL, DUPLICATE, FINE)


@dataclass(frozen=True)
class Fix:
    """One line of a table of fixes.

    Attributes:
        path: The image, as in the manifest.
        mark: "wrong label", "duplicate" or "fine".
        label: The right class of a wrong label; "" if it is none of the classes.
        other: The other image of a pair.
        source: Where the line is, for messages.
    """

    path: str
    mark: str
    label: str
    other: str
    source: str


def read_fixes(file: str | Path) -> list[Fix]:
    """Reads a table that a report page has written, or a spreadsheet has saved anew: ``path,mark,label,other``.

    Raises:
        FileNotFoundError: There is no such file.
        InputError: It cannot be decoded, or has other columns or another mark; the message names file and line.
    """
    columns, rows = parse_table(Path(file).expanduser())
    if tuple(columns) != COLUMNS:
        raise InputError(
            f"{file} is no table of fixes: its columns are {', '.join(columns) or 'missing'}, "
            f"expected {', '.join(COLUMNS)}"
        )
    check_lengths(rows, columns)
    fixes = [Fix(**row.values, source=str(row)) for row in rows]
    for fix in fixes:
        if fix.mark not in MARKS:
            raise unknown(f"mark in {fix.source}", fix.mark, MARKS)
    return fixes


def apply_fixes(manifest: Manifest, fixes: Sequence[Fix]) -> Manifest:
    """Corrects labels, leaves out images of no class, and keeps one image of each group of duplicates.

    Under a class-disjoint protocol an image whose label is corrected moves to the split of its class.

    Raises:
        InputError: A path or a class is not in the manifest, or one image has two different labels.
    """
    rows_of: dict[str, list[int]] = {}
    for row, path in enumerate(manifest.paths):
        rows_of.setdefault(path, []).append(row)
    _check(manifest, fixes, rows_of)
    labels, dropped = manifest.labels.copy(), np.zeros(len(manifest), bool)
    for fix in fixes:
        if fix.mark == WRONG_LABEL and fix.label:
            labels[rows_of[fix.path]] = manifest.class_names.index(fix.label)
        elif fix.mark == WRONG_LABEL:
            dropped[rows_of[fix.path]] = True
    fixed = _move_to_class(replace(manifest, labels=labels), np.flatnonzero(labels != manifest.labels))
    pairs = [
        (one, other)
        for fix in fixes
        if fix.mark == DUPLICATE
        for one in rows_of[fix.path]
        for other in rows_of[fix.other]
    ]
    groups = [[row for row in rows if not dropped[row]] for rows in group_pairs(pairs)]
    without = drop_duplicates(fixed, [rows for rows in groups if rows])
    return without.take(np.flatnonzero(~np.isin(without.ids, manifest.ids[dropped])))


def describe_fixes(fixes: Sequence[Fix]) -> str:
    """The number of fixes of each form, in words."""
    corrected = sum(fix.mark == WRONG_LABEL and bool(fix.label) for fix in fixes)
    left_out = sum(fix.mark == WRONG_LABEL and not fix.label for fix in fixes)
    pairs = [sum(fix.mark == mark for fix in fixes) for mark in (DUPLICATE, FINE)]
    return (
        f"{count_of(corrected, 'label')} corrected, {count_of(left_out, 'image')} of no class left out, "
        f"{count_of(pairs[0], 'pair')} of duplicates, {count_of(pairs[1], 'pair')} fine"
    )


def _check(manifest: Manifest, fixes: Sequence[Fix], rows_of: dict[str, list[int]]) -> None:
    first: dict[str, Fix] = {}
    for fix in fixes:
        for path in (fix.path, *((fix.other,) if fix.mark != WRONG_LABEL else ())):
            if path not in rows_of:
                raise InputError(
                    f"{fix.source}: {path!r} is not an image of {manifest.name} in {manifest.root}: fixes apply to the "
                    "data set of the report in which they were marked"
                )
        if fix.mark == WRONG_LABEL:
            if fix.label and fix.label not in manifest.class_names:
                raise unknown(f"class in {fix.source}", fix.label, manifest.class_names)
            earlier = first.setdefault(fix.path, fix)
            if earlier.label != fix.label:
                raise InputError(
                    f"{fix.source}: {fix.path} is {fix.label!r}, but {earlier.label!r} in {earlier.source}"
                )


def _move_to_class(manifest: Manifest, rows: np.ndarray) -> Manifest:
    """Moves rows to the split of their class, where every other image of the class is in one split."""
    if manifest.protocol == "closed-set":
        return manifest
    split, is_query, is_gallery = manifest.split.copy(), manifest.is_query.copy(), manifest.is_gallery.copy()
    others = np.setdiff1d(np.arange(len(manifest)), rows)
    for row in rows:
        splits = np.unique(manifest.split[others[manifest.labels[others] == manifest.labels[row]]])
        if len(splits) == 1 and splits[0] != split[row]:
            split[row] = splits[0]
            # Of separate queries and gallery, only the gallery may get images that its authors did not choose.
            is_query[row] = manifest.protocol != "query-gallery" or splits[0] == "train"
            is_gallery[row] = True
    return replace(manifest, split=split, is_query=is_query, is_gallery=is_gallery)
