"""Build, update, query and size of an index in each store, compared in one run.

    python benchmarks/search.py --rows 100000 1000000
    python benchmarks/search.py --rows 100000 --milvus http://127.0.0.1:19530     # a server too

Vectors of 512 dimensions around 1,000 random centers take the place of embeddings, so that only the stores are timed.
Each store runs in a process of its own, whose largest resident set is its memory. Of a Milvus server on this machine,
--milvus-folder and --milvus-process name its data and its process: growth of the files counts as disk, and its resident
set at the end is added to the memory. "add" and "delete" change 1,000 images and "add 1" a single one; what they wrote
is counted for stores of this process. A query asks for the 10 nearest images of a vector near an indexed one, one at a
time from each client thread. Recall@10 is against the products with all vectors. Ratios are to the folder with exact
search of the same number of rows.
"""

import argparse
import json
import math
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hgsl.evaluation.knn.vectors import open_vectors
from hgsl.search.stores.address import open_store
from hgsl.search.stores.protocol import ImageFile, ImageRow, Store
from hgsl.search.where.parser import parse

CLONE = Path(__file__).parents[1]
CASES = ("folder flat", "folder IVF", "milvus-lite", "milvus server")
CENTERS, NOISE, CHANGED, DEPTH, CHUNK = 1000, 0.8, 1000, 10, 10_000
FILTER = "share == 7"  # 1 % of the images
MODEL = {"fingerprint": "benchmark", "architecture": {"backbone": "none"}, "checkpoint": None}
COLUMNS = {
    "build s": "{:,.1f}", "add s": "{:.2f}", "add 1 s": "{:.2f}", "delete s": "{:.2f}", "open s": "{:.2f}",
    "p50 ms, 1": "{:.1f}", "p99 ms, 1": "{:.1f}", "p50 ms, 16": "{:.1f}", "p99 ms, 16": "{:.1f}",
    "filter p50 ms": "{:.1f}", "recall@10": "{:.4f}", "disk MB": "{:,.0f}", "add wrote MB": "{:,.2f}",
    "add 1 wrote KB": "{:,.1f}", "memory MB": "{:,.0f}",
}  # fmt: skip


def vectors_of(start: int, stop: int, width: int) -> NDArray[np.float32]:
    """The unit vectors of the images from ``start`` to ``stop``, the same in every process."""
    centers = np.random.default_rng(0).standard_normal((CENTERS, width), dtype=np.float32)
    parts = []
    for chunk in range(start // CHUNK, -(-stop // CHUNK)):
        noise = np.random.default_rng([1, chunk]).standard_normal((CHUNK, width), dtype=np.float32)
        numbers = np.arange(chunk * CHUNK, (chunk + 1) * CHUNK)
        rows = centers[numbers % CENTERS] + NOISE * noise
        parts.append(rows[max(0, start - chunk * CHUNK) : stop - chunk * CHUNK])
    rows = np.concatenate(parts)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def images(start: int, stop: int) -> list[ImageRow]:
    return [
        ImageRow(ImageFile(path_of(number), 1, number), f"c{number % CENTERS}", {"share": float(number % 100)})
        for number in range(start, stop)
    ]  # fmt: skip


def path_of(number: int) -> str:
    return f"{number % CENTERS:04}/{number:09}.jpg"


def update(store: Store, record: Mapping[str, Any], added: range, deleted: Sequence[str], width: int) -> None:
    """Adds images by their numbers and deletes some by their paths."""
    with store.update() as writer:
        writer.begin(record)
        for start in range(added.start, added.stop, CHUNK):
            stop = min(start + CHUNK, added.stop)
            writer.upsert(images(start, stop), vectors_of(start, stop, width))
        if deleted and writer.previous is not None:
            paths = set(deleted)
            writer.delete([number for number, row in writer.previous.rows.items() if row.file.path in paths])
        writer.prepare({})
        writer.publish({"no_match": None, "overlap": None})


def seconds_of(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def percentiles(search: Callable[[NDArray[np.float32]], object], queries: NDArray[np.float32], clients: int) -> Any:
    """The 50th and the 99th percentile of a query's milliseconds."""
    with ThreadPoolExecutor(clients) as pool:
        seconds = list(pool.map(lambda query: seconds_of(lambda: search(query[None])), queries))
    return np.percentile(seconds, [50, 99]) * 1000


def nearest_paths(queries: NDArray[np.float32], numbers: range, width: int) -> list[set[str]]:
    """The paths of the images nearest to each query, by the product with every vector."""
    scores, best = np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
    for start in range(numbers.start, numbers.stop, CHUNK):
        stop = min(start + CHUNK, numbers.stop)
        scores = np.hstack([scores, queries @ vectors_of(start, stop, width).T])
        best = np.hstack([best, np.broadcast_to(np.arange(start, stop), (len(queries), stop - start))])
        order = np.argsort(-scores, axis=1)[:, :DEPTH]
        scores, best = np.take_along_axis(scores, order, 1), np.take_along_axis(best, order, 1)
    return [set(map(path_of, row)) for row in best.tolist()]


def bytes_in(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) if path.is_dir() else 0


def bytes_written() -> int:
    """The bytes that this process has passed to the system to write; 0 where the system does not count them."""
    counters = Path("/proc/self/io")
    lines = counters.read_text().splitlines() if counters.is_file() else []
    return next((int(line.split()[1]) for line in lines if line.startswith("wchar:")), 0)


def resident_bytes(process: int) -> int:
    """The resident set of another process."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmRSS:"))


def measure(case: str, options: argparse.Namespace) -> dict[str, float]:
    """Measures one store, in this process; NaN is what cannot be measured."""
    [rows], width, queries, is_server = options.rows, options.dimensions, options.queries, case == "milvus server"
    cells = max(1, 4 * round(rows**0.5))
    types = {"folder flat": "Flat", "folder IVF": f"IVF{cells},Flat nprobe={max(1, cells // 64)}"}
    record = {
        **{"root": "/photos", "labels": "folders", "model": MODEL, "dimensions": width, "columns": {"share": "number"}},
        "index_type": types.get(case, "FLAT"),
    }  # fmt: skip
    store, results = open_store(options.address), dict.fromkeys(COLUMNS, math.nan)
    folder = options.milvus_folder if is_server else Path(options.address)
    empty = bytes_in(folder) if is_server and folder else 0
    results["build s"] = seconds_of(lambda: update(store, record, range(rows), [], width))
    before = bytes_written()
    results["add s"] = seconds_of(lambda: update(store, record, range(rows, rows + CHANGED), [], width))
    results["add wrote MB"] = math.nan if is_server else (bytes_written() - before) / 1e6
    before, last = bytes_written(), rows + CHANGED
    results["add 1 s"] = seconds_of(lambda: update(store, record, range(last, last + 1), [], width))
    results["add 1 wrote KB"] = math.nan if is_server else (bytes_written() - before) / 1e3
    gone = [path_of(number) for number in range(CHANGED)]
    results["delete s"] = seconds_of(lambda: update(store, record, range(0), gone, width))
    start = time.perf_counter()
    snapshot = store.open()
    snapshot.search(open_vectors(vectors_of(0, 1, width)), 1)
    results["open s"] = time.perf_counter() - start
    chosen = vectors_of(0, queries, width) + 0.02 * np.random.default_rng(2).standard_normal((queries, width))
    asked = chosen.astype(np.float32)
    condition = parse(FILTER, {"share": "number"})
    for clients in (1, 16):
        results[f"p50 ms, {clients}"], results[f"p99 ms, {clients}"] = percentiles(
            lambda query: snapshot.search(open_vectors(query), DEPTH), asked, clients
        )
    results["filter p50 ms"], _ = percentiles(lambda q: snapshot.search(open_vectors(q), DEPTH, condition), asked, 1)
    hits = snapshot.search(open_vectors(asked[:100]), DEPTH)
    nearest = nearest_paths(asked[:100], range(CHANGED, last + 1), width)
    shares = [len({hit.path for hit in one} & other) / DEPTH for one, other in zip(hits, nearest, strict=True)]
    results["recall@10"] = float(np.mean(shares))
    if folder:
        results["disk MB"] = (bytes_in(folder) - empty) / 1e6
    if options.milvus_process or not is_server:
        server = resident_bytes(options.milvus_process) if is_server else 0
        results["memory MB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 + server / 2**20
    return results


def run_case(case: str, rows: int, options: argparse.Namespace) -> dict[str, float] | None:
    """Measures one store in a process of its own; None if it failed, with the reason on stderr."""
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        address = f"{folder}/index.db" if case == "milvus-lite" else f"{folder}/index"
        if case == "milvus server":
            address = f"{options.milvus}#benchmark_{os.getpid()}_{rows}"
        words = ["--case", case, "--address", address, "--rows", str(rows)]
        words += ["--dimensions", str(options.dimensions), "--queries", str(options.queries)]
        for flag, value in (("folder", options.milvus_folder), ("process", options.milvus_process)):
            words += [] if value is None else [f"--milvus-{flag}", str(value)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(CLONE), os.environ.get("PYTHONPATH", "")])}
        command = [sys.executable, str(Path(__file__).resolve()), *words]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment)
        shutil.rmtree(address, ignore_errors=True)
    return json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else None


def table(results: Mapping[str, Mapping[str, float] | None]) -> Iterator[str]:
    """A Markdown table with a row per store, then one of ratios to the first."""
    yield f"| store | {' | '.join(COLUMNS)} |"
    yield "|---|" + "---:|" * len(COLUMNS)
    for case, values in results.items():
        cells = [
            "failed" if values is None else "" if math.isnan(values[name]) else COLUMNS[name].format(values[name])
            for name in COLUMNS
        ]
        yield f"| {case} | {' | '.join(cells)} |"
    first = next(iter(results.values()))
    for case, values in list(results.items())[1:]:
        if first is not None and values is not None:
            ratios = [values[name] / first[name] if first[name] else math.nan for name in COLUMNS]
            cells = ["" if math.isnan(ratio) else f"{ratio:.2f}" for ratio in ratios]
            yield f"| {case} / folder flat | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000], help="Numbers of vectors.")
    parser.add_argument("--dimensions", type=int, default=512, help="Length of a vector.")
    parser.add_argument("--queries", type=int, default=1000, help="Queries per measurement.")
    parser.add_argument("--stores", nargs="+", choices=CASES, default=CASES[:3], help="Stores to measure.")
    parser.add_argument("--milvus", metavar="URI", help="Address of a Milvus server, which is then measured too.")
    parser.add_argument("--milvus-folder", type=Path, help="Data folder of the server, on this machine.")
    parser.add_argument("--milvus-process", type=int, metavar="PID", help="Process of the server, on this machine.")
    parser.add_argument("--folder", type=Path, help="Folder of the indexes; by default a temporary one.")
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    parser.add_argument("--address", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(measure(options.case, options)))
        return
    print(
        f"{platform.machine()}, {os.cpu_count()} processors, {options.dimensions} dimensions, {options.queries} queries"
    )
    for rows in options.rows:
        cases = [*options.stores, *(["milvus server"] if options.milvus else [])]
        print(f"\n{rows:,} vectors\n", flush=True)
        for line in table({case: run_case(case, rows, options) for case in dict.fromkeys(cases)}):
            print(line, flush=True)


if __name__ == "__main__":
    main()
