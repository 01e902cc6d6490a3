"""``prepare_dataset.py NAME --root DIR``: download, verify, audit and list a data set, in that order."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hgsl.cli._main import run
from hgsl.common.errors import InputError, unknown
from hgsl.common.files import write_json
from hgsl.data import DATASETS, PROTOCOLS, load_manifest, summary
from hgsl.data.adapters.csv import write_table
from hgsl.data.audit import audit
from hgsl.data.files.cards import Card, count, fetch, read_card
from hgsl.data.files.layout import default_root
from hgsl.data.overview import missing_files

EXIT_FOUND = 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0 if all is well, 1 if ``--verify`` or ``--audit`` found a problem, 2 after bad input."""
    options = _parser().parse_args(arguments)
    return run(lambda: prepare(options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Fetch, check and list a data set. Without an action, prints what is there.",
        epilog="Exit code: 0 all is well, 1 --verify or --audit found a problem, 2 bad input.",
    )
    parser.add_argument("name", help=f"one of {', '.join(sorted(DATASETS))}")
    parser.add_argument("--root", type=Path, help="folder of the data set (for csv: the table); default datasets/NAME")
    parser.add_argument("--download", action="store_true", help="fetch and unpack the official archives into the root")
    parser.add_argument("--verify", action="store_true", help="compare the counts with the card's, look for every file")
    parser.add_argument("--audit", action="store_true", help="open every image: broken, odd and duplicate ones")
    parser.add_argument("--audit-report", type=Path, metavar="FILE.json", help="write all findings of --audit there")
    parser.add_argument("--manifest", type=Path, metavar="FILE.csv", help="write the table of all images there")
    parser.add_argument("--protocol", default="zero-shot", help=f"{', '.join(PROTOCOLS)} (default zero-shot)")
    parser.add_argument(
        "--option", action="append", default=[], metavar="KEY=VALUE", help="of the data set, such as seed=1; repeatable"
    )
    return parser


def prepare(options: argparse.Namespace) -> int:
    """Does what the options ask for.

    Raises:
        InputError: A name, an option or a list is wrong, or a download failed.
        OSError: A file is missing or cannot be written.
    """
    if options.name not in DATASETS:
        raise unknown("data set", options.name, DATASETS)
    if options.audit_report and not options.audit:
        raise InputError("--audit-report is written by --audit: add --audit")
    card, root = read_card(options.name), options.root or default_root(options.name)
    settings = dict(_setting(text) for text in options.option)
    if options.download:
        if card is None:
            raise InputError(f"{options.name} is no data set to download: it reads your own files")
        root.mkdir(parents=True, exist_ok=True)
        print("\n".join(fetch(card, root)))
    try:
        manifest = load_manifest(options.name, options.root, options.protocol, **settings)
    except FileNotFoundError as error:
        if card is None or options.download:
            raise
        raise FileNotFoundError(f"{error}; or add --download; or by hand: {card['by_hand']}") from None
    print(summary(manifest))
    code = 0
    if options.verify and not verify(card, options.name, options.root, settings):
        code = EXIT_FOUND
    if options.audit:
        found = audit(manifest)
        print(found.table())
        if options.audit_report:
            write_json(options.audit_report, asdict(found))
        if not found.ok:
            code = EXIT_FOUND
    if options.manifest:
        write_table(manifest, options.manifest)
        print(f"wrote {len(manifest):,} rows to {options.manifest}; its paths are relative to {manifest.root}")
    return code


def verify(card: Card | None, name: str, root: Path | None, settings: dict[str, Any]) -> bool:
    """Prints a line a count and one on the files; whether all are right."""
    right = True
    expected = {} if card is None or settings else card["expected"]
    for protocol, counts in expected.items():
        found = count(load_manifest(name, root, protocol))
        for split, numbers in counts.items():
            for what, number in numbers.items():
                seen = found.get(split, {}).get(what, 0)
                right &= seen == number
                mark = "ok" if seen == number else f"WRONG, expected {number:,}"
                print(f"{protocol:13} {split:5} {what:8} {seen:>8,}  {mark}")
    if not expected:
        print(
            "no counts to compare: "
            + ("with --option the card's do not apply" if card else "no card for your own data")
        )
    manifest = load_manifest(name, root, *list(expected)[:1], **settings)
    missing = missing_files(manifest)
    print(f"files: {len(manifest) - len(missing):,} of {len(manifest):,} are in {manifest.root}")
    for row in missing[:10]:
        print(f"  missing: row {manifest.ids[row]} {manifest.paths[row]}")
    return right and not missing


def _setting(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals:
        raise InputError(f"--option {text!r} must be KEY=VALUE")
    try:
        return key, json.loads(value)
    except json.JSONDecodeError:
        return key, value
