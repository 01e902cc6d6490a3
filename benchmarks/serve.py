"""Latency, throughput, errors and memory of the search server, queried over loopback by another process.

    python benchmarks/serve.py                      # 600 synthetic images, 2,000 searches per number of clients
    python benchmarks/serve.py --index MY_INDEX     # the images of an existing index

The server is `hgsl search serve` in a process of its own, as a user runs it; the clients share its processors. Each
request uploads the file of an indexed image; an answer counts as an error unless its status is 200 and its first hit
is that image. Memory is the server's resident set, first after warming up, then after all requests.
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

CLONE = Path(__file__).parents[1]
WARM_UP = 400
CLASSES, IMAGES, SIDE = 30, 20, 480  # of the synthetic data set


def make_index(folder: Path, backbone: str, weights: str, image_size: int) -> Path:
    """Draws images and indexes them with an untrained model, which is as fast as a trained one."""
    for label in range(CLASSES):
        class_folder = folder / "images" / f"class_{label:02}"
        class_folder.mkdir(parents=True)
        for number in range(IMAGES):
            draw(label, number, SIDE).save(class_folder / f"{number:02}.jpg", quality=92)
    torch.manual_seed(0)
    save_embedder(create_embedder(backbone, weights=weights, image_size=image_size), folder / "run")
    build_index(folder / "index", folder / "images", checkpoint=folder / "run")
    return folder / "index"


def resident(process: int) -> float:
    """The resident set of a process in MiB."""
    with open(f"/proc/{process}/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS")) / 1024


def query_all(
    url: str, images: Sequence[tuple[int, bytes]], clients: int, requests: int
) -> tuple[list[float], int, float]:
    """Seconds of each request, number of errors, and seconds of all requests together."""
    free: SimpleQueue[httpx.Client] = SimpleQueue()
    for _ in range(clients):
        free.put(httpx.Client(base_url=url, timeout=300))

    def query(number: int) -> tuple[float, bool]:
        client = free.get()
        image, content = images[number % len(images)]
        start = time.perf_counter()
        try:
            response = client.post("/api/search", params={"k": 24}, content=content)
            is_correct = response.status_code == 200 and response.json()["hits"][0]["id"] == image
        except httpx.HTTPError:
            is_correct = False
        seconds = time.perf_counter() - start
        free.put(client)
        return seconds, is_correct

    start = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        answers = list(pool.map(query, range(requests)))
    total = time.perf_counter() - start
    for _ in range(clients):
        free.get().close()
    return [seconds for seconds, _ in answers], sum(not is_correct for _, is_correct in answers), total


def serve(index: Path, work: Callable[[str, int], None]) -> None:
    """Starts the server, calls ``work`` with its address and process id, and ends it."""
    command = [sys.executable, "-m", "hgsl", "search", "serve", "--index", str(index), "--port", "0", "--device", "cpu"]
    paths = [str(CLONE), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            words = process.stdout.readline().split()
            address = next((word for word in words if word.startswith("http")), None)
            if address is None:
                raise SystemExit("the server did not start: its error is above")
            work(address, process.pid)
        finally:
            process.terminate()


def measure(index: Path, clients: Sequence[int], requests: int) -> None:
    opened = SearchIndex.open(index, device="cpu")
    chosen = opened.spread(100)
    images = [(image, opened.path(image).read_bytes()) for image in chosen]
    size = np.mean([len(content) for _, content in images]) / 1024
    architecture = opened.record["model"]["architecture"]["backbone"]
    print(
        f"{platform.machine()}, {os.cpu_count()} processors, torch {torch.__version__}, {architecture} at "
        f"{opened.record['model']['data_config']['image_size']} pixels; "
        f"{len(opened):,} images of {opened.dimensions:,} dimensions, "
        f"uploads of {size:.0f} KiB"
    )

    def work(url: str, process: int) -> None:
        query_all(url, images, max(clients), WARM_UP)
        before = resident(process)
        print(f"\n{'clients':>8}{'requests':>10}{'queries/s':>11}{'p50 ms':>9}{'p99 ms':>9}{'errors':>8}{'MiB':>8}")
        print(f"{'warm':>8}{WARM_UP:>10,}{'':>11}{'':>9}{'':>9}{'':>8}{before:>8.0f}", flush=True)
        for count in clients:
            seconds, errors, total = query_all(url, images, count, requests)
            p50, p99 = np.percentile(seconds, [50, 99]) * 1000
            print(
                f"{count:>8}{requests:>10,}{requests / total:>11.1f}{p50:>9.1f}{p99:>9.1f}{errors:>8}"
                f"{resident(process):>8.0f}",
                flush=True,
            )
        print(f"\nmemory grew by {resident(process) - before:.1f} MiB over {len(clients) * requests:,} requests")

    serve(index, work)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--index", type=Path, help="Index folder; by default one is built from synthetic images.")
    parser.add_argument("--backbone", default="tf_efficientnet_lite0", help="Backbone of the index that is built.")
    parser.add_argument("--weights", default="packaged", help="Weights of that backbone.")
    parser.add_argument("--image-size", type=int, default=160, help="Side of the model input in pixels.")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16], help="Numbers of concurrent requests.")
    parser.add_argument("--requests", type=int, default=2000, help="Requests per number of clients.")
    options = parser.parse_args()
    if options.index:
        measure(options.index, options.clients, options.requests)
        return
    with tempfile.TemporaryDirectory() as folder:
        index = make_index(Path(folder), options.backbone, options.weights, options.image_size)
        measure(index, options.clients, options.requests)


if __name__ == "__main__":
    main()
