"""Flags of ``hgsl search``."""

import argparse
from pathlib import Path

from hgsl.cli._help import HelpFormatter
from hgsl.common.locations import local_or_uri
from hgsl.search import checks


def search_parser() -> argparse.ArgumentParser:
    """Returns the parser of ``index``, ``query`` and ``serve``, one of which is the argument ``command``."""
    parser = argparse.ArgumentParser(description="Search a folder of images by image.", formatter_class=HelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="index | query | serve")
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


def _add_query(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("images", type=local_or_uri, nargs="+", metavar="IMAGE", help="Query image files, or their addresses.")
    add("--index", required=True, metavar="INDEX", help="Index folder, or the URI of an index in Milvus.")
    _add_model(parser)
    add("-k", type=int, default=10, metavar="K", help="Number of images per query.")
    add("--label", action="append", help="Search only images of this label; repeatable.")
    add(
        "--where",
        metavar="CONDITION",
        help='Search only images that satisfy a condition, such as \'label in ["rose", "oak"] and year >= 2020\'.',
    )
    add("--sheet", type=Path, metavar="FILE.png", help="Write the results as a contact sheet.")
    add("--json", action="store_true", help="Print JSON instead of a table.")
    _add_device(parser)


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


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", metavar="RUN", help="Model of the index, if it is elsewhere than named.")


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", help="Device: auto, cpu, cuda or mps.")
