"""The published experiment of Continuous Sparsification on CIFAR-10: density and test accuracy against the claim.

    python benchmarks/tickets.py --root CIFAR10             # dense and s0 = -0.1, 0.0, 0.1, two seeds each
    python benchmarks/tickets.py --root CIFAR10 --plain     # without queued steps and CUDA graphs

It runs the recipe ``cifar10_cs`` in full: three rounds of 85 epochs, then 85 of the ticket, on the whole test set. Runs
go side by side, each in a process, and stop after ``--minutes`` with their states saved: the same command continues
them, and writes the table of those that are finished to ``tickets.md``. Any further flag is passed to ``hgsl
sparsify``. On a GPU the runs queue their steps and replay CUDA graphs (``run.cuda_graphs``), which
``benchmarks/gpu.py`` checks against ordinary steps.
"""

import argparse
import json
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

INITIAL_VALUES = (-0.1, 0.0, 0.1)
QUEUED = ("--run.log_every", "100", "--optim.fused", "true", "--run.cuda_graphs", "on")
CLAIM_DENSITY, CLAIM_TICKET, CLAIM_DENSE = (0.20, 0.30), (91.5, 92.0), (90.0, 91.0)
CLAIM = "Published: a ticket with 20 to 30 % of the weights at 91.5 to 92.0 % test accuracy, dense 90 to 91 %."
GRACE = 60  # seconds for a stopped run to save its state


def names() -> dict[str, list[str]]:
    """Settings by name of the network, in the order of the table."""
    dense = {"dense": ["--rounds", "0"]}
    return dense | {f"ticket, s0 = {value}": ["--mask-initial-value", str(value)] for value in INITIAL_VALUES}


def folder_of(out: Path, name: str, seed: int) -> Path:
    """Run folder of a network and a seed."""
    return out / f"{name.replace(', s0 = ', '_').replace('-', 'minus')}_seed{seed}"


def command(options: argparse.Namespace, folder: Path, settings: Sequence[str], seed: int) -> list[str]:
    """The command of one run, which continues if the folder has a state."""
    words = [sys.executable, "-m", "hgsl", "sparsify", "--config", "cifar10_cs", "--run.dir", str(folder)]
    words += ["--data.root", options.root, "--run.seed", str(seed), "--run.device", options.device]
    words += [] if options.plain or not options.device.startswith("cuda") else QUEUED
    return [*words, *settings, *options.flags, *(["--resume"] if (folder / "config.yaml").is_file() else [])]


def run_all(options: argparse.Namespace) -> None:
    """Runs what is unfinished, ``options.parallel`` at a time, until the time is over."""
    end = time.monotonic() + 60 * options.minutes
    waiting = [
        (folder_of(options.out, name, seed), settings, seed)
        for seed in options.seeds
        for name, settings in names().items()
        if not (folder_of(options.out, name, seed) / "report.json").is_file()
    ]
    running: list[tuple[Path, subprocess.Popen[bytes]]] = []
    try:
        while (waiting or running) and time.monotonic() < end:
            while waiting and len(running) < options.parallel:
                folder, settings, seed = waiting.pop(0)
                options.out.mkdir(parents=True, exist_ok=True)
                with (options.out / f"{folder.name}.log").open("ab") as log:
                    process = subprocess.Popen(command(options, folder, settings, seed), stdout=log, stderr=log)
                running.append((folder, process))
                print(f"started {folder}", file=sys.stderr)
            time.sleep(0.2)
            for folder, process in [entry for entry in running if entry[1].poll() is not None]:
                running.remove((folder, process))
                if process.returncode:
                    raise SystemExit(f"{folder} failed with status {process.returncode}: see {folder}.log")
    finally:  # also of those beside a run that failed
        stop(running)


def stop(running: Sequence[tuple[Path, subprocess.Popen[bytes]]]) -> None:
    """Ends runs after they have saved their states."""
    for folder, process in running:
        print(f"stopped: {folder} saves its state", file=sys.stderr)
        process.send_signal(signal.SIGTERM)
    for _, process in running:
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:
            process.kill()


def read_reports(out: Path, seeds: Sequence[int]) -> dict[str, list[dict[str, Any]]]:
    """Reports of the finished runs by name of the network."""
    paths = {name: [folder_of(out, name, seed) / "report.json" for seed in seeds] for name in names()}
    return {name: [json.loads(path.read_text()) for path in files if path.is_file()] for name, files in paths.items()}


def table(reports: Mapping[str, Sequence[Mapping[str, Any]]], seeds: int) -> str:
    """Returns the Markdown table of density and accuracy, and whether the claim holds."""
    lines = [
        "| network | seeds | density | test accuracy | each seed | minutes a run |",
        "|---|---:|---:|---:|---|---:|",
    ]
    densities, accuracies = {}, {}
    for name, runs in reports.items():
        if not runs:
            lines.append(f"| {name} | 0 of {seeds} | not run | not run | | |")
            continue
        densities[name] = mean(run["density"] for run in runs)
        accuracies[name] = 100 * mean(run["scores"]["accuracy"] for run in runs)
        each = ", ".join(f"{100 * run['scores']['accuracy']:.2f}" for run in runs)
        minutes = mean(run["seconds"] for run in runs) / 60
        lines.append(
            f"| {name} | {len(runs)} of {seeds} | {densities[name]:.3f} | {accuracies[name]:.2f} | {each} "
            f"| {minutes:.1f} |"
        )
    return "\n".join([*lines, "", CLAIM, *_verdicts(densities, accuracies)])


def _verdicts(densities: Mapping[str, float], accuracies: Mapping[str, float]) -> list[str]:
    """A line for the tickets and one for the dense network, as far as they have been run."""
    lines = []
    tickets = {name: value for name, value in densities.items() if name != "dense"}
    if tickets:
        low, high = CLAIM_DENSITY
        sparse = {name: accuracies[name] for name, density in tickets.items() if low <= density <= high}
        best = max(sparse, key=lambda name: sparse[name]) if sparse else None
        reached = best is not None and sparse[best] >= CLAIM_TICKET[0]
        shown = f"{best} has {sparse[best]:.2f} %" if best else "no ticket has 20 to 30 % of the weights"
        lines.append(f"Tickets: {'reached' if reached else 'not reached'}, {shown}.")
    if "dense" in accuracies:
        reached = accuracies["dense"] >= CLAIM_DENSE[0]
        lines.append(f"Dense: {'reached' if reached else 'not reached'}, {accuracies['dense']:.2f} %.")
    return lines


def main() -> None:
    """Runs the experiment as far as its time allows, and writes and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--root", required=True, help="CIFAR-10: its binary version, or a folder or zip of class folders"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/tickets"), help="folder of the runs and the table")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--parallel", type=int, default=8, help="runs side by side")
    parser.add_argument("--minutes", type=float, default=10, help="time after which the runs stop, to be continued")
    parser.add_argument("--plain", action="store_true", help="no queued steps and no CUDA graphs on a GPU")
    options, options.flags = parser.parse_known_args()
    run_all(options)
    text = table(read_reports(options.out, options.seeds), len(options.seeds))
    (options.out / "tickets.md").write_text(f"{text}\n")
    print(text)


if __name__ == "__main__":
    main()
