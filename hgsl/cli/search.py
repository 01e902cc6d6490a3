"""``hgsl search``: index a folder of images, query it, serve its web page."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hgsl.cli._help import HelpFormatter
from hgsl.cli._main import run
from hgsl.common.device_names import check_device_name
from hgsl.common.disk import check_writable
from hgsl.common.extras import require
from hgsl.common.faiss_factory import check_factory
from hgsl.common.locations import local_or_uri
from hgsl.common.model_source import check_model_source
from hgsl.search import checks
from hgsl.search.folder.record import read_record
from hgsl.search.stores.address import is_milvus, split_address

if TYPE_CHECKING:
    from hgsl.search import Hit, IndexReport, SearchIndex

MAX_BROKEN_SHOWN = 20


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 after bad input."""
    options = _parser().parse_args(arguments)
    return run(lambda: options.work(options), ends_process=arguments is None)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Search a folder of images by image.", formatter_class=HelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="index | query | serve")
    for name, summary, add in (
        ("index", "Embed a folder of images, or update its index.", _add_index),
        ("query", "Print the nearest images of each query image.", _add_query),
        ("serve", "Serve a local web page and its JSON API.", _add_serve),
    ):
        add(commands.add_parser(name, help=summary, description=summary, formatter_class=HelpFormatter))
    return parser


def _add_index(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--images",
        type=local_or_uri,
        metavar="DIR",
        help="Image folder, or its address such as s3://bucket/images; searched recursively.",
    )
    add("--out", metavar="INDEX", help="Index folder; created if missing.")
    add("--store", choices=("folder", "milvus"), help="Store of the index; milvus with --uri, a folder with --out.")
    add(
        "--uri",
        metavar="URI",
        help="Milvus instead of a folder: index.db or http://HOST:19530, with #COLLECTION.",
    )
    add("--checkpoint", metavar="RUN", help="Trained model; an existing index has its own copy.")
    add(
        "--labels",
        metavar="TABLE.csv",
        help="Table with the columns path and label and any others, or 'folders': class folder names.",
    )
    add(
        "--faiss",
        metavar="FACTORY",
        help="FAISS factory such as 'IVF256,Flat nprobe=16'; a new index is 'Flat' (exact).",
    )
    add("--milvus-index", metavar="TYPE", help="Milvus index such as 'HNSW M=16 ef=64'; a new one is 'FLAT' (exact).")
    add("--retrain", action="store_true", help="Train an approximate index anew on its present images.")
    add(
        "--no-match",
        type=float,
        metavar="SIMILARITY",
        help="Similarity below which a search reports no match; by default the one calibrated by hgsl-eval --no-match.",
    )
    add("--batch-size", type=int, default=64, metavar="N", help="Images per forward pass.")
    add("--workers", type=int, metavar="N", help="Processes that load images, by the number of CPUs if not given.")
    _add_device(parser)
    add(
        "--from-embeddings",
        type=Path,
        metavar="PARTS",
        help="Folder of embeddings in parts; of the images in them, or of --images, these are not embedded again.",
    )
    add("--engine", choices=checks.ENGINES, default=checks.LOCAL, help="Embed in this process, or on a Ray cluster.")
    add("--address", metavar="HOST:PORT", help="Ray cluster, 'auto' for that of this machine; by default Ray is "
        "started on this machine.")  # fmt: skip
    add("--parts", type=Path, metavar="DIR", help="Folder that all machines share, to keep the parts that Ray writes; "
        "by default they are removed.")  # fmt: skip
    parser.set_defaults(work=_index)


def _add_query(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("images", type=Path, nargs="+", metavar="IMAGE", help="Query image files.")
    add("--index", required=True, metavar="INDEX", help="Index folder, or the URI of an index in Milvus.")
    _add_model(parser)
    add("-k", type=int, default=10, metavar="K", help="Number of images per query.")
    add("--label", help="Search only images of this label.")
    add(
        "--where",
        metavar="CONDITION",
        help='Search only images that satisfy a condition, such as \'label in ["rose", "oak"] and year >= 2020\'.',
    )
    add("--sheet", type=Path, metavar="FILE.png", help="Write the results as a contact sheet.")
    add("--json", action="store_true", help="Print JSON instead of a table.")
    _add_device(parser)
    parser.set_defaults(work=_query)


def _add_serve(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--index",
        action="append",
        required=True,
        metavar="[NAME=]INDEX",
        help="Index folder, or the URI of an index in Milvus; repeatable with names.",
    )
    _add_model(parser)
    add("--host", default="127.0.0.1", help="Address to listen on; 127.0.0.1 is this machine only.")
    add("--port", type=int, default=8000, help="Port to listen on; 0 chooses a free port.")
    add(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="Accepted host name of the server; repeatable.",
    )
    _add_device(parser)
    parser.set_defaults(work=_serve)


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", metavar="RUN", help="Model of the index, if it is elsewhere than named.")


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", help="Device: auto, cpu, cuda or mps.")


def _index(options: argparse.Namespace) -> None:
    if options.images is not None:
        checks.check_image_folder(options.images)
    checks.check_sources(options.images, options.from_embeddings)
    address = checks.index_address(options.store, options.out, options.uri)
    kind = "milvus" if is_milvus(address) else "folder"
    checks.given_index_type(kind, address, options.faiss, options.milvus_index)
    checks.check_label_table(options.labels)
    checks.check_threshold(options.no_match)
    checks.check_counts(options.batch_size, options.workers or 0)
    if options.faiss is not None:
        check_factory(options.faiss, "cosine")
    check_device_name(options.device, "--device")
    if options.checkpoint is not None:
        check_model_source(options.checkpoint)
    if is_milvus(address):
        require("milvus", "an index in Milvus")
    else:
        if options.checkpoint is None:
            checks.check_has_model(Path(address))
        check_writable(address)
    parts = checks.check_engine(options.engine, address, options.parts, options.address, options.from_embeddings)
    if parts is not None:
        check_writable(parts)
    from hgsl.engine.loop.loader import default_workers
    from hgsl.search import build_index

    report = build_index(
        address,
        options.images,
        checkpoint=options.checkpoint,
        labels=options.labels,
        faiss=options.faiss,
        milvus_index=options.milvus_index,
        retrain=options.retrain,
        no_match=options.no_match,
        device=options.device,
        batch_size=options.batch_size,
        workers=default_workers() if options.workers is None else options.workers,
        from_embeddings=options.from_embeddings,
        engine=options.engine,
        address=options.address,
        parts=options.parts,
    )
    _print_report(report, address)


def _print_report(report: "IndexReport", address: str) -> None:
    counts = (
        f"{report.new:,} new, {report.changed:,} changed, {report.unchanged:,} unchanged, {report.dropped:,} dropped"
    )
    print(f"images: {counts}")
    if report.resumed:
        print(f"{report.resumed:,} of them were embedded by an interrupted run")
    if report.other_files:
        files = sorted(report.other_files.items())
        print("other files: " + ", ".join(f"{count:,} {suffix}" for suffix, count in files))
    if report.broken:
        print(f"broken and skipped: {len(report.broken):,}")
        for path, reason in list(report.broken.items())[:MAX_BROKEN_SHOWN]:
            print(f"  {path}: {reason}")
        if len(report.broken) > MAX_BROKEN_SHOWN:
            print(f"  ... and {len(report.broken) - MAX_BROKEN_SHOWN:,} more")
    for note in report.notes:
        print(f"note: {note}")
    no_match = report.record["no_match"] or {"threshold": None}
    threshold = no_match["threshold"]
    below = "none" if threshold is None else f"{threshold:.4f} ({no_match['source']})"
    print(f"index {address}: {report.images:,} images, {report.record['dimensions']:,} dimensions, "
          f"{report.record['index_type']}; no-match threshold: {below}")  # fmt: skip


def _query(options: argparse.Namespace) -> None:
    checks.check_query_images(options.images)
    checks.check_neighbors(options.k)
    _check_index(options.index, options.checkpoint)
    if options.sheet:
        checks.check_sheet(options.sheet)
    check_device_name(options.device, "--device")
    from hgsl.search import SearchIndex

    index = SearchIndex.open(options.index, device=options.device, model=options.checkpoint)
    results = index.search(options.images, options.k, label=options.label, where=options.where)
    if options.json:
        queries = [_as_json(index, path, hits) for path, hits in zip(options.images, results, strict=True)]
        print(json.dumps({"index": options.index, "threshold": index.threshold, "queries": queries}, indent=2))
    else:
        for path, hits in zip(options.images, results, strict=True):
            _print_hits(index, path, hits)
    if options.sheet:
        from hgsl.search.query_sheet import write_query_sheet

        write_query_sheet(options.sheet, index, options.images, results)
        if not options.json:
            print(f"written: {options.sheet}")


def _as_json(index: "SearchIndex", path: Path, hits: Sequence["Hit"]) -> dict[str, object]:
    return {"image": str(path), "match": index.accepts(hits), "hits": [hit._asdict() for hit in hits]}


def _print_hits(index: "SearchIndex", path: Path, hits: Sequence["Hit"]) -> None:
    print(path)
    if not hits:  # the probed cells of a FAISS index may be empty
        print("  nothing found")
        return
    if index.accepts(hits) is False:
        print(f"  no match: the nearest is {hits[0].similarity:.4f}, below {index.threshold:.4f}")
    width = max(len(hit.label or "-") for hit in hits)
    for rank, hit in enumerate(hits, 1):
        print(f"  {rank:>3}  {hit.similarity:.4f}  {hit.label or '-':{width}}  {hit.path}")


def _check_index(address: str, checkpoint: str | None) -> None:
    """Checks what can be checked before PyTorch is imported."""
    if is_milvus(address):
        require("milvus", "an index in Milvus")
        split_address(address)
    else:
        read_record(Path(address))
    if checkpoint is not None:
        check_model_source(checkpoint)


def _serve(options: argparse.Namespace) -> None:
    require("serve", "the page")
    addresses = checks.named_indexes(options.index)
    for address in addresses.values():
        _check_index(address, options.checkpoint)
    checks.check_port(options.port)
    checks.check_host_names(options.allow_host)
    check_device_name(options.device, "--device")
    from hgsl.search.web.server import serve

    serve(
        addresses,
        options.host,
        options.port,
        allowed_hosts=options.allow_host,
        device=options.device,
        model=options.checkpoint,
    )
