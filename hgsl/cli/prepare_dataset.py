"""Command ``hgsl prepare NAME --root DIR``: downloads, verifies, audits and lists a data set, in that order."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hgsl.cli._cleaning import add_cleaning_flags, check_cleaning_flags, clean
from hgsl.cli._help import HelpFormatter
from hgsl.cli._main import run
from hgsl.cli._names import names_in
from hgsl.common.datasets import ROOT_HINT, default_root
from hgsl.common.disk import check_writable
from hgsl.common.errors import InputError, unknown
from hgsl.common.files import as_text, write_json
from hgsl.common.paths import check_local
from hgsl.common.tables import count_of

if TYPE_CHECKING:
    from hgsl.data import Manifest
    from hgsl.data.files.cards import Card

EXIT_PROBLEM = 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0 on success, 1 if ``--verify`` or ``--audit`` found a problem, 2 after bad input."""
    return run(lambda: prepare(_parser().parse_args(arguments)), ends_process=arguments is None)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        formatter_class=HelpFormatter,
        description="Downloads, verifies, audits and lists a data set; without a flag, prints its contents.",
        epilog="Exit status: 0 success, 1 --verify or --audit found a problem, 2 bad input.",
    )
    parser.add_argument("name", help=f"Data set: {', '.join(_datasets())}.")
    parser.add_argument("--root", type=Path, help="Folder of the data set, or table of csv, in place of datasets/NAME.")
    parser.add_argument(
        "--download", action="store_true", help="Download and unpack the official archives into the root."
    )
    parser.add_argument(
        "--verify", action="store_true", help="Compare counts with the card and check that every file exists."
    )
    parser.add_argument("--audit", action="store_true", help="Open every image: damaged, unusual and duplicate ones.")
    parser.add_argument("--audit-report", type=Path, metavar="FILE.json", help="Write all findings of --audit as JSON.")
    parser.add_argument(
        "--manifest", type=Path, metavar="FILE.csv", help="Write the table of all images and their splits."
    )
    add_cleaning_flags(parser)
    parser.add_argument("--to", choices=["parquet"], help="Convert the data set to Parquet files, images included.")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="New folder of --to; by default the root with '-parquet' added."
    )
    parser.add_argument("--protocol", default="zero-shot", help=f"Protocol: {', '.join(_protocols())}.")
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="Option of the data set, such as seed=1; repeatable.",
    )
    return parser


def prepare(flags: argparse.Namespace) -> int:
    """Runs the steps that the flags ask for and returns the exit status.

    Raises:
        InputError: A name, an option or a list is wrong, or a download failed.
        OSError: A file is missing or cannot be written.
    """
    _check_flags(flags)
    from hgsl.data import summary
    from hgsl.data.adapters.table import write_table
    from hgsl.data.files.cards import read_card

    options = _options(flags)
    card = read_card(flags.name)
    converted = _converted_folder(flags)
    if flags.download:
        _download(card, flags)
    manifest = _load(card, flags, options)
    print(summary(manifest))
    status = 0
    if flags.verify and not verify(card, flags.name, flags.root, options):
        status = EXIT_PROBLEM
    if flags.audit and not _audit(manifest, flags.audit_report):
        status = EXIT_PROBLEM
    manifest = clean(manifest, flags)
    if flags.manifest:
        write_table(manifest, flags.manifest)
        print(f"wrote {len(manifest):,} rows to {flags.manifest}, with paths relative to {manifest.root}")
    if converted is not None:
        from hgsl.data.files.parquet_writer import write_parquet

        files = count_of(write_parquet(manifest, converted), "file")
        print(f"wrote {count_of(len(manifest), 'image')} to {files} in {converted}, which the data set parquet reads")
    return status


def _converted_folder(flags: argparse.Namespace) -> Path | None:
    """The folder to which the data set is converted, if it is; checked before anything is read."""
    if flags.to is None:
        return None
    from hgsl.data.files.parquet_writer import check_parquet_folder

    root: Path = (flags.root or default_root(flags.name)).expanduser().absolute()
    folder: Path = root.with_name(f"{root.stem if root.is_file() else root.name}-parquet")
    folder = flags.out.expanduser() if flags.out else folder
    check_parquet_folder(folder)
    check_writable(folder)
    return folder


def _datasets() -> list[str]:
    return sorted(names_in("hgsl.data.adapters", "DATASETS"))


def _protocols() -> list[str]:
    return names_in("hgsl.data.protocols", "PROTOCOLS")


def _check_flags(flags: argparse.Namespace) -> None:
    """Checks names and paths before PyTorch is imported."""
    if flags.name not in _datasets():
        raise unknown("data set", flags.name, _datasets())
    if flags.protocol not in _protocols():
        raise unknown("protocol", flags.protocol, _protocols())
    if flags.audit_report and not flags.audit:
        raise InputError("--audit-report is written by --audit: add --audit")
    if flags.out and not flags.to:
        raise InputError("--out is the folder of --to parquet: add --to parquet")
    if flags.root:
        check_local("--root", flags.root, ROOT_HINT)
    if flags.root and not flags.download and not flags.root.expanduser().exists():
        raise FileNotFoundError(f"{flags.root.absolute()} does not exist: --root names the data set")
    for path in (flags.audit_report, flags.manifest):
        if path:
            check_writable(path)
    check_cleaning_flags(flags)


def _options(flags: argparse.Namespace) -> dict[str, Any]:
    """The values of ``--option``, parsed as JSON unless the option takes text."""
    from hgsl.data import check_options

    options: dict[str, Any] = {}
    for word in flags.option:
        key, equals, text = word.partition("=")
        if not equals:
            raise InputError(f"--option {word!r} must be KEY=VALUE")
        try:
            options[key] = json.loads(text)
            check_options(flags.name, {key: options[key]}, source="--option")
        except (json.JSONDecodeError, InputError):
            options[key] = text
    check_options(flags.name, options, source="--option")
    return options


def _download(card: "Card | None", flags: argparse.Namespace) -> None:
    if card is None:
        raise InputError(f"{flags.name} cannot be downloaded: it reads your own files")
    from hgsl.data.files.cards import fetch

    root = flags.root or default_root(flags.name)
    root.mkdir(parents=True, exist_ok=True)
    print("\n".join(fetch(card, root)))


def _load(card: "Card | None", flags: argparse.Namespace, options: dict[str, Any]) -> "Manifest":
    """The split images; those that the protocol cannot split, for --audit and --duplicates, which need no split."""
    from hgsl.data import list_images, load_manifest

    try:
        return load_manifest(flags.name, flags.root, flags.protocol, **options)
    except FileNotFoundError as error:
        if card is None and flags.root is None:
            raise FileNotFoundError(f"{error}: name your images with --root") from None
        if card is None or flags.download:
            raise
        raise FileNotFoundError(f"{error}; or add --download; or by hand: {card['by_hand']}") from None
    except InputError as error:
        if not (flags.audit or flags.duplicates):
            raise
        listed = list_images(flags.name, flags.root, **options)  # raises again what is not about the split
        return replace(listed, notes=(*listed.notes, f"images without a split: {error}"))


def _audit(manifest: "Manifest", report: Path | None) -> bool:
    """Prints the findings, writes them to ``report``, and returns whether there is no problem among them."""
    from hgsl.data.audit import audit

    result = audit(manifest)
    print(result.table())
    if report:
        write_json(report, asdict(result))
    return result.ok


def verify(card: "Card | None", name: str, root: Path | None, options: dict[str, Any]) -> bool:
    """Prints each count and that of the card, and the number of files that exist; returns whether all agree."""
    from hgsl.data import list_images, load_manifest
    from hgsl.data.overview import missing_files

    expected = {} if card is None or options else card["expected"]
    counts_match = True
    for protocol, counts in expected.items():
        counts_match &= _counts_match(load_manifest(name, root, protocol), counts)
    if not expected:
        reason = "the card does not apply with --option" if card else "your own data has no card"
        print(f"no counts to compare: {reason}")
    manifest = list_images(name, root, **options)
    missing = missing_files(manifest)
    print(f"files: {len(manifest) - len(missing):,} of {len(manifest):,} are in {manifest.root}")
    for row in missing[:10]:
        print(f"  missing: {as_text(manifest.paths[row])}")
    return counts_match and not missing


def _counts_match(manifest: "Manifest", expected: dict[str, dict[str, int]]) -> bool:
    """Prints each count of a protocol, and returns whether all equal the expected ones."""
    from hgsl.data.files.cards import count

    all_equal, counts = True, count(manifest)
    for split, numbers in expected.items():
        for column, number in numbers.items():
            actual = counts.get(split, {}).get(column, 0)
            all_equal &= actual == number
            mark = "ok" if actual == number else f"WRONG, expected {number:,}"
            print(f"{manifest.protocol:13} {split:5} {column:8} {actual:>8,}  {mark}")
    return all_equal
