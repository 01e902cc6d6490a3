"""Steps of ``hgsl prepare`` that change the table of a data set: fixes, and duplicates that are dropped."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from hgsl.common.device_names import check_device_name
from hgsl.common.disk import check_writable
from hgsl.common.errors import InputError

if TYPE_CHECKING:
    from hgsl.data import Manifest


def add_cleaning_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of this module."""
    parser.add_argument(
        "--fixes",
        metavar="FILE.csv",
        help="Apply the marks of a report page to the images of --manifest and --to; no image file changes.",
    )
    parser.add_argument(
        "--duplicates",
        metavar="FILE.html",
        help="Find equal and similar images, also cropped or mirrored ones, and write a page that shows them.",
    )
    parser.add_argument(
        "--similarity",
        type=float,
        metavar="X",
        help="Cosine similarity of near duplicates, in place of one that is calibrated on altered copies.",
    )
    parser.add_argument(
        "--drop-duplicates",
        action="store_true",
        help="Keep one image of each group of --duplicates in --manifest and --to, a test image if there is one.",
    )
    parser.add_argument("--device", default="auto", help="Device of the network of --duplicates.")


def check_cleaning_flags(flags: argparse.Namespace) -> None:
    """Checks the flags before PyTorch is imported."""
    for flag, value in (("--similarity", flags.similarity), ("--drop-duplicates", flags.drop_duplicates or None)):
        if value is not None and not flags.duplicates:
            raise InputError(f"{flag} has no effect without --duplicates FILE.html: give it as well")
    if flags.similarity is not None and not -1 <= flags.similarity <= 1:
        raise InputError(f"--similarity is a cosine similarity from -1 to 1, found {flags.similarity}")
    check_device_name(flags.device, "--device")
    changes = {"--drop-duplicates": flags.drop_duplicates, "--fixes": flags.fixes and not flags.duplicates}
    for flag, given in changes.items():
        if given and not (flags.manifest or flags.to):
            raise InputError(f"{flag} changes the table of --manifest or the files of --to: give --manifest FILE.csv")
    if flags.fixes and not Path(flags.fixes).expanduser().is_file():
        raise FileNotFoundError(f"no table {flags.fixes}: --fixes names the fixes.csv of a report page")
    if flags.duplicates:
        check_writable(flags.duplicates)


def clean(manifest: "Manifest", flags: argparse.Namespace) -> "Manifest":
    """Applies the steps that the flags ask for, and prints what they change."""
    from hgsl.data.changes import describe_change, drop_duplicates
    from hgsl.data.fixes import apply_fixes, describe_fixes, read_fixes

    if flags.fixes:
        fixes = read_fixes(flags.fixes)
        fixed = apply_fixes(manifest, fixes)
        print(f"{flags.fixes}: {describe_fixes(fixes)}\n{describe_change(manifest, fixed)}")
        manifest = fixed
    if flags.duplicates:
        from hgsl.engine.duplicates import find_duplicates, write_duplicates

        duplicates = find_duplicates(manifest, similarity=flags.similarity, device=flags.device)
        write_duplicates(duplicates, flags.duplicates)
        print(f"{duplicates.summary()}\nwritten: {flags.duplicates}")
        if flags.drop_duplicates:
            without = drop_duplicates(manifest, duplicates.groups)
            print(f"one image of each group:\n{describe_change(manifest, without)}")
            manifest = without
    return manifest
