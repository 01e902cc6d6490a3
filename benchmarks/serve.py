"""Latency, throughput, errors and memory of the search page's server, asked over loopback by another process.

    python benchmarks/serve.py                      # 600 drawn photos, 2,000 searches at each number of clients
    python benchmarks/serve.py --index MY_INDEX     # the photos of an index of one's own

The server is `tools/search.py serve` in a process of its own, as a user runs it; the clients share its processors. Each
request uploads a photo of the index as it lies on the disk; an answer counts as an error unless its status is 200 and
its first hit is that very photo. Memory is the server's resident set, first after warming up, then after all requests.
"""

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

import httpx
import numpy as np
import torch

from hgsl.data.synthetic.butterflies import draw
from hgsl.models import create_embedder, save_embedder
from hgsl.search import SearchIndex, build_index

TOOL = Path(__file__).parents[1] / "tools" / "search.py"
WARM_UP = 400
KINDS, PHOTOS, SIDE = 30, 20, 480  # of the drawn photos


def make_index(folder: Path, backbone: str, weights: str, image_size: int) -> Path:
    """Draws photos, and indexes them with a model that was not trained: the work is the same."""
    for kind in range(KINDS):
        place = folder / "photos" / f"kind_{kind:02}"
        place.mkdir(parents=True)
        for number in range(PHOTOS):
            draw(kind, number, SIDE).save(place / f"{number:02}.jpg", quality=92)
    torch.manual_seed(0)
    save_embedder(create_embedder(backbone, weights=weights, image_size=image_size), folder / "run")
    build_index(folder / "index", folder / "photos", checkpoint=folder / "run")
    return folder / "index"


def resident(process: int) -> float:
    """The resident set of a process in MiB."""
    with open(f"/proc/{process}/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS")) / 1024


def ask_all(
    url: str, photos: Sequence[tuple[int, bytes]], clients: int, requests: int
) -> tuple[list[float], int, float]:
    """Seconds of each request, the number of errors, and the seconds of all together."""
    free: SimpleQueue[httpx.Client] = SimpleQueue()
    for _ in range(clients):
        free.put(httpx.Client(base_url=url, timeout=300))

    def ask(number: int) -> tuple[float, bool]:
        session = free.get()
        photo, content = photos[number % len(photos)]
        start = time.perf_counter()
        try:
            response = session.post("/api/search", params={"k": 24}, content=content)
            right = response.status_code == 200 and response.json()["hits"][0]["id"] == photo
        except httpx.HTTPError:
            right = False
        took = time.perf_counter() - start
        free.put(session)
        return took, right

    start = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        answers = list(pool.map(ask, range(requests)))
    seconds = time.perf_counter() - start
    for _ in range(clients):
        free.get().close()
    return [took for took, _ in answers], sum(not right for _, right in answers), seconds


def serve(index: Path, work: Callable[[str, int], None]) -> None:
    """Starts the server, calls ``work`` with its address and process, and ends it."""
    command = [sys.executable, str(TOOL), "serve", "--index", str(index), "--port", "0", "--device", "cpu"]
    paths = [str(TOOL.parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            address = next(word for word in process.stdout.readline().split() if word.startswith("http"))
            work(address, process.pid)
        finally:
            process.terminate()


def measure(index: Path, clients: Sequence[int], requests: int) -> None:
    opened = SearchIndex.open(index, device="cpu")
    chosen = opened.spread(100)
    photos = [(photo, opened.path(photo).read_bytes()) for photo in chosen]
    size = np.mean([len(content) for _, content in photos]) / 1024
    architecture = opened.record["model"]["architecture"]["backbone"]
    print(
        f"{platform.machine()}, {os.cpu_count()} processors, torch {torch.__version__}, {architecture} at "
        f"{opened.record['model']['data_config']['image_size']} pixels; "
        f"{len(opened):,} photos of {opened.dimensions:,} numbers, "
        f"uploads of {size:.0f} KiB"
    )

    def work(url: str, process: int) -> None:
        ask_all(url, photos, max(clients), WARM_UP)
        before = resident(process)
        print(f"\n{'clients':>8}{'requests':>10}{'queries/s':>11}{'p50 ms':>9}{'p99 ms':>9}{'errors':>8}{'MiB':>8}")
        print(f"{'warm':>8}{WARM_UP:>10,}{'':>11}{'':>9}{'':>9}{'':>8}{before:>8.0f}", flush=True)
        for count in clients:
            seconds, errors, total = ask_all(url, photos, count, requests)
            middle, late = np.percentile(seconds, [50, 99]) * 1000
            print(
                f"{count:>8}{requests:>10,}{requests / total:>11.1f}{middle:>9.1f}{late:>9.1f}{errors:>8}"
                f"{resident(process):>8.0f}",
                flush=True,
            )
        print(f"\nmemory grew by {resident(process) - before:.1f} MiB over {len(clients) * requests:,} requests")

    serve(index, work)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--index", type=Path, help="an index; left out, one is made of drawn photos")
    parser.add_argument("--backbone", default="tf_efficientnet_lite0", help="of the index that is made")
    parser.add_argument("--weights", default="packaged", help="of that backbone")
    parser.add_argument("--image-size", type=int, default=160, help="pixels that the model sees")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16], help="requests at a time")
    parser.add_argument("--requests", type=int, default=2000, help="for each number of clients")
    options = parser.parse_args()
    if options.index:
        measure(options.index, options.clients, options.requests)
        return
    with tempfile.TemporaryDirectory() as folder:
        index = make_index(Path(folder), options.backbone, options.weights, options.image_size)
        measure(index, options.clients, options.requests)


if __name__ == "__main__":
    main()
