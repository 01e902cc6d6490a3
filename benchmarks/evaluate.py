"""Time and memory of the evaluator against the bare FAISS search and pytorch-metric-learning.

    python benchmarks/evaluate.py                # N = 20,000 and 60,000, D = 512, every image searched among the others
    python benchmarks/evaluate.py --million      # also 1,000,000 x 128 and x 512 with 10,000 queries, exact and IVF

Each measurement runs in a separate process, for its own peak of memory; memory is the growth of the resident set after
the embeddings are created. The runs alternate and the fastest of each is shown; processor seconds
are those of all threads together, which other work on the machine disturbs less. hgsl multiplies with torch on a
processor with matrix units (``lscpu`` shows ``amx_bf16``), and with FAISS elsewhere. The embeddings are classes of 20
images around random centers, so that hits are neither certain nor rare.
"""

import argparse
import json
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable

import faiss
import numpy as np
import torch

from hgsl.evaluation import evaluate_embeddings

KS = (1, 2, 4, 8, 1000)
CLASS_SIZE = 20
QUERIES = 10_000  # searched among 1,000,000 images


def make(count: int, width: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Returns unit vectors (count, width) float32 and their labels, generated in chunks to bound the peak memory."""
    rng = np.random.default_rng(seed)
    classes = count // CLASS_SIZE
    centers = rng.standard_normal((classes, width), dtype=np.float32)
    labels = np.arange(count) % classes
    vectors = np.empty((count, width), dtype=np.float32)
    for start in range(0, count, 10_000):
        rows = slice(start, start + 10_000)
        piece = centers[labels[rows]] + 2.2 * rng.standard_normal(vectors[rows].shape, dtype=np.float32)
        vectors[rows] = piece / np.linalg.norm(piece, axis=1, keepdims=True)
    return vectors, labels


def run_faiss(vectors: np.ndarray, labels: np.ndarray) -> None:
    """FAISS search alone, at the depth that the metrics need: the 1,000 nearest and the query itself."""
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    index.search(vectors, max(KS) + 1)


def run_ours(vectors: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    return evaluate_embeddings(vectors, labels, KS).to_dict()


def run_pytorch_metric_learning(vectors: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

    include = ("precision_at_1", "r_precision", "mean_average_precision_at_r")
    calculator = AccuracyCalculator(include=include, k=max(KS), device=torch.device("cpu"))
    return calculator.get_accuracy(torch.from_numpy(vectors), torch.from_numpy(labels))


def run_million(index: str) -> Callable[[np.ndarray, np.ndarray], dict[str, float]]:
    def run(vectors: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        queries = slice(0, QUERIES)
        result = evaluate_embeddings(
            vectors[queries],
            labels[queries],
            (1, 2, 4, 8),
            ids=np.arange(QUERIES),
            gallery_embeddings=vectors,
            gallery_labels=labels,
            gallery_ids=np.arange(len(vectors)),
            index=index,
        )
        return result.to_dict()

    return run


RUNS: dict[str, Callable[[np.ndarray, np.ndarray], dict[str, float] | None]] = {
    "FAISS flat, search alone": run_faiss,
    "hgsl": run_ours,
    "pytorch-metric-learning": run_pytorch_metric_learning,
    "hgsl, exact": run_million("Flat"),
    "hgsl, IVF1024,Flat nprobe=32": run_million("IVF1024,Flat nprobe=32"),
}


def measure(name: str, count: int, width: int) -> dict[str, object]:
    """One run in this process: seconds, growth of the peak resident set in MB, and the scores."""
    vectors, labels = make(count, width)
    evaluate_embeddings(vectors[:1000], np.arange(min(count, 1000)) // 2)  # creates threads and buffers
    # Resets the peak counter to the current resident set.
    with open("/proc/self/clear_refs", "w") as control:
        control.write("5")
    before = resident("VmHWM")
    start, start_cpu = time.perf_counter(), time.process_time()
    scores = RUNS[name](vectors, labels)
    seconds, processor = time.perf_counter() - start, time.process_time() - start_cpu
    return {
        "seconds": seconds,
        "processor": processor,
        "megabytes": (resident("VmHWM") - before) / 1024,
        "scores": scores,
    }


def resident(field: str) -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(field))


def measure_in_subprocess(name: str, count: int, width: int) -> dict[str, object]:
    command = [sys.executable, __file__, "--one", name, "--count", str(count), "--width", str(width)]
    result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(result.stdout.splitlines()[-1])


def compare(names: list[str], count: int, width: int, repeats: int) -> None:
    rounds = [{name: measure_in_subprocess(name, count, width) for name in names} for _ in range(repeats)]

    def smallest(name: str, field: str) -> float:
        return min(round_[name][field] for round_ in rounds)

    print(f"\nN = {count:,}, D = {width}")
    print(f"{'':32}{'seconds':>10}{'ratio':>8}{'processor s':>13}{'ratio':>8}{'MB added':>16}  scores")
    for name in names:
        cells = f"{name:32}"
        for field, width_of_cell in (("seconds", 10), ("processor", 13)):
            cells += (
                f"{smallest(name, field):>{width_of_cell}.1f}{smallest(name, field) / smallest(names[0], field):>8.2f}"
            )
        memory = max(round_[name]["megabytes"] for round_ in rounds)
        print(f"{cells}{memory:>16.0f}  {_text(rounds[0][name]['scores'])}", flush=True)


def _text(scores: dict[str, float] | None) -> str:
    wanted = ("recall@1", "precision_at_1", "r_precision", "map@r", "mean_average_precision_at_r", "index_overlap")
    return "" if scores is None else " ".join(f"{key}={scores[key]:.4f}" for key in wanted if key in scores)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--million", action="store_true", help="also search 1,000,000 images")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each; the fastest counts")
    parser.add_argument("--sizes", type=int, nargs="*", default=[20_000, 60_000], help="numbers of images")
    for name, kind in (("--one", str), ("--count", int), ("--width", int)):
        parser.add_argument(name, type=kind, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, options.count, options.width)))
        return
    print(
        f"{platform.machine()}, {faiss.omp_get_max_threads()} threads, faiss {faiss.__version__}, "
        f"torch {torch.__version__}"
    )
    for count in options.sizes:
        compare(["FAISS flat, search alone", "hgsl", "pytorch-metric-learning"], count, 512, options.repeats)
    if options.million:
        for width in (128, 512):
            compare(["hgsl, exact", "hgsl, IVF1024,Flat nprobe=32"], 1_000_000, width, 1)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    print(f"\nlargest process: {peak:.1f} GB")


if __name__ == "__main__":
    main()
