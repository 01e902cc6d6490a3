"""``hgsl search``: index a folder of images, query it, serve its web page."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hgsl.cli._main import run
from hgsl.cli._search_flags import search_parser
from hgsl.common.device_names import check_device_name
from hgsl.common.disk import check_writable
from hgsl.common.extras import require
from hgsl.common.faiss_factory import check_factory
from hgsl.common.files import as_text
from hgsl.common.locations import name_of
from hgsl.common.model_source import check_model_source
from hgsl.common.paths import public_uri
from hgsl.search import checks
from hgsl.search.folder.record import read_record
from hgsl.search.stores.address import is_milvus, split_address

if TYPE_CHECKING:
    from hgsl.search import Hit, IndexReport, SearchIndex

MAX_BROKEN_SHOWN = 20


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 after bad input."""
    return run(lambda: _search(search_parser().parse_args(arguments)), ends_process=arguments is None)


def _search(options: argparse.Namespace) -> None:
    {"index": _index, "query": _query, "serve": _serve}[options.command](options)


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
    _print_report(report, public_uri(address))


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
            print(as_text(f"  {path}: {reason}"))
        if len(report.broken) > MAX_BROKEN_SHOWN:
            print(f"  ... and {len(report.broken) - MAX_BROKEN_SHOWN:,} more")
    for note in report.notes:
        print(as_text(f"note: {note}"))
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
        queries = [_as_json(index, image, hits) for image, hits in zip(options.images, results, strict=True)]
        about = {"index": public_uri(options.index), "root": str(index.root), "threshold": index.threshold}
        print(json.dumps({**about, "queries": queries}, indent=2))
    else:
        for image, hits in zip(options.images, results, strict=True):
            _print_hits(index, image, hits)
    if options.sheet:
        from hgsl.search.query_sheet import write_query_sheet

        write_query_sheet(options.sheet, index, options.images, results)
        if not options.json:
            print(f"written: {options.sheet}")


def _as_json(index: "SearchIndex", image: Path | str, hits: Sequence["Hit"]) -> dict[str, object]:
    return {"image": name_of(image), "match": index.accepts(hits), "hits": [hit._asdict() for hit in hits]}


def _print_hits(index: "SearchIndex", image: Path | str, hits: Sequence["Hit"]) -> None:
    print(as_text(name_of(image)))
    if not hits:  # the probed cells of a FAISS index may be empty
        print("  nothing found")
        return
    if index.accepts(hits) is False:
        print(f"  no match: the nearest is {hits[0].similarity:.4f}, below {index.threshold:.4f}")
    labels = [as_text(hit.label or "-") for hit in hits]
    width = max(map(len, labels))
    for rank, (label, hit) in enumerate(zip(labels, hits, strict=True), 1):
        print(f"  {rank:>3}  {hit.similarity:.4f}  {label:{width}}  {as_text(hit.path)}")


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
