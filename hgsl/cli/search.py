"""``tools/search.py`` and ``hgsl-search``: index a folder of photos, search it, serve a page that does."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hgsl.cli._main import run
from hgsl.common.extras import require

if TYPE_CHECKING:
    from hgsl.search import Hit, IndexReport, SearchIndex

BROKEN_SHOWN = 20


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 after bad input."""
    options = _parser().parse_args(arguments)
    return run(lambda: options.work(options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Search a folder of photos by photo.")
    commands = parser.add_subparsers(required=True, metavar="index | query | serve")

    index = commands.add_parser("index", help="embed a folder of photos, or bring its index up to date")
    index.add_argument(
        "--images", type=Path, required=True, metavar="DIR", help="folder of photos, folders below it too"
    )
    index.add_argument("--out", type=Path, required=True, metavar="INDEX", help="folder of the index")
    index.add_argument("--checkpoint", metavar="RUN", help="trained model; an index that is there has its own copy")
    index.add_argument(
        "--labels", metavar="FILE.csv", help="table with columns path and label; or 'folders': names of class folders"
    )
    index.add_argument("--faiss", metavar="FACTORY", help="'Flat' (exact, default) or such as 'IVF256,Flat nprobe=16'")
    index.add_argument(
        "--no-match",
        type=float,
        metavar="SIMILARITY",
        help="below it a search says 'no match'; by default what hgsl-eval --no-match calibrated for the run",
    )
    index.add_argument("--batch-size", type=int, default=64, metavar="N", help="photos a forward pass (default 64)")
    index.add_argument("--workers", type=int, metavar="N", help="processes that read photos")
    index.set_defaults(work=_index)

    query = commands.add_parser("query", help="print the nearest photos of each image")
    query.add_argument("images", type=Path, nargs="+", metavar="IMAGE")
    query.add_argument("-k", type=int, default=10, metavar="K", help="how many (default 10)")
    query.add_argument("--label", help="only photos of this label")
    query.add_argument("--sheet", type=Path, metavar="FILE.png", help="draw them")
    query.add_argument("--json", action="store_true", help="print JSON instead of a table")
    query.set_defaults(work=_query)

    serve = commands.add_parser("serve", help="a local web page with a JSON API behind it")
    serve.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1: this machine only)"
    )
    serve.add_argument("--port", type=int, default=8000, help="default 8000; 0 takes a free one")
    serve.add_argument(
        "--allow-host", action="append", default=[], metavar="NAME", help="domain name it is reached by; repeatable"
    )
    serve.set_defaults(work=_serve)

    for command in (query, serve):
        command.add_argument("--index", type=Path, required=True, metavar="INDEX", help="folder of the index")
    for command in (index, query, serve):
        command.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    return parser


def _index(options: argparse.Namespace) -> None:
    from hgsl.engine.loop.loader import default_workers
    from hgsl.search import build_index

    report = build_index(
        options.out,
        options.images,
        checkpoint=options.checkpoint,
        labels=options.labels,
        faiss=options.faiss,
        no_match=options.no_match,
        device=options.device,
        batch_size=options.batch_size,
        workers=default_workers() if options.workers is None else options.workers,
    )
    _print_report(report, options.out)


def _print_report(report: "IndexReport", folder: Path) -> None:
    counts = (
        f"{report.new:,} new, {report.changed:,} changed, {report.unchanged:,} unchanged, {report.dropped:,} dropped"
    )
    print(f"photos: {counts}")
    if report.resumed:
        print(f"{report.resumed:,} of them were embedded by a run that was cut off")
    if report.ignored:
        print("other files: " + ", ".join(f"{count:,} {suffix}" for suffix, count in sorted(report.ignored.items())))
    if report.broken:
        print(f"broken and skipped: {len(report.broken):,}")
        for path, reason in list(report.broken.items())[:BROKEN_SHOWN]:
            print(f"  {path}: {reason}")
        if len(report.broken) > BROKEN_SHOWN:
            print(f"  ... all are in {folder / report.record['files']['photos']}")
    for note in report.notes:
        print(f"note: {note}")
    no_match = report.record["no_match"]
    below = "none" if no_match is None else f"below {no_match['threshold']:.4f} ({no_match['source']})"
    print(f"index {folder}: {report.photos:,} photos, {report.record['dimensions']:,} dimensions, "
          f"{report.record['faiss']}; no match: {below}")  # fmt: skip


def _query(options: argparse.Namespace) -> None:
    from hgsl.search import SearchIndex

    missing = [path for path in options.images if not path.is_file()]
    if missing:
        raise FileNotFoundError(f"no such image: {missing[0]}")
    index = SearchIndex.open(options.index, device=options.device)
    found = index.search(options.images, options.k, label=options.label)
    if options.json:
        queries = [_as_json(index, path, hits) for path, hits in zip(options.images, found, strict=True)]
        print(json.dumps({"index": str(options.index), "threshold": index.threshold, "queries": queries}, indent=2))
    else:
        for path, hits in zip(options.images, found, strict=True):
            _print_hits(index, path, hits)
    if options.sheet:
        from hgsl.search.sheet import write_query_sheet

        write_query_sheet(options.sheet, index, options.images, found)
        if not options.json:
            print(f"written: {options.sheet}")


def _as_json(index: "SearchIndex", path: Path, hits: Sequence["Hit"]) -> dict[str, object]:
    return {"image": str(path), "match": index.accepts(hits), "hits": [hit._asdict() for hit in hits]}


def _print_hits(index: "SearchIndex", path: Path, hits: Sequence["Hit"]) -> None:
    print(path)
    if not hits:  # a probe of a FAISS index may meet an empty cell
        print("  nothing found")
        return
    if index.accepts(hits) is False:
        print(f"  no match: the nearest is {hits[0].similarity:.4f}, below {index.threshold:.4f}")
    width = max(len(hit.label or "-") for hit in hits)
    for rank, hit in enumerate(hits, 1):
        print(f"  {rank:>3}  {hit.similarity:.4f}  {hit.label or '-':{width}}  {hit.path}")


def _serve(options: argparse.Namespace) -> None:
    require("serve", "the page")
    from hgsl.search.web.server import serve

    serve(options.index, options.host, options.port, allowed_hosts=options.allow_host, device=options.device)
