"""Soak test: commands run under random faults, and afterwards nothing may be lost, hung or shown as a traceback.

Run ``python tests/soak.py --minutes 60``; it is not part of ``pytest``. Every round starts one command (train,
sparsify, index, eval, export, serve), injects one fault at a random moment, and checks that

* all processes of the command end in time,
* no traceback is printed, and the exit code is one that the command documents,
* the command, started again without a fault, arrives at the result of an undisturbed run, bit for bit.

A full disk and a read-only disk need root, for a small tmpfs of their own; without root these faults are left out.
"""

import argparse
import ctypes
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

SETTINGS = {
    "model": {"backbone": "test_resnet", "weights": "none", "freeze": "none"},
    "data": {"image_size": 32, "cache": "none", "workers": 2},
    "train": {"epochs": 3, "batch_size": 8, "save_every": 2},
    "run": {"device": "cpu", "precision": "float32", "threads": 1},
    "loss": {"top_k": 2},
}
SMALL = [f"--{group}.{name}={value}" for group, values in SETTINGS.items() for name, value in values.items()]
SECONDS_TO_END = 20  # after SIGTERM or Ctrl-C: the step is finished and the state saved
SECONDS_TO_DIE = 5  # after kill -9 of the main process: for its workers
DISK_MB = 96
PR_SET_CHILD_SUBREAPER = 36

# Prepended to PYTHONPATH for the fault "clock": time.time() jumps back an hour after a while.
CLOCK = """
import time
_time, _start = time.time, time.monotonic()
time.time = lambda: _time() - (3600 if time.monotonic() - _start > float({delay}) else 0)
"""


@dataclass
class Command:
    """A command under test.

    Attributes:
        words: Its arguments after ``hgsl``.
        resume: The arguments that continue it after a fault.
        result: Digest of what it leaves; equal digests mean that nothing was lost.
        clean: Removes what it leaves, before a new round.
        seconds: How long an undisturbed run takes; measured at the start.
        expected: The digest of an undisturbed run.
    """

    words: list[str]
    resume: list[str]
    result: Callable[[], str]
    clean: Callable[[], None]
    seconds: float = 0.0
    expected: str = ""


@dataclass
class Outcome:
    """The result of a round."""

    command: str
    fault: str
    problems: list[str] = field(default_factory=list)


def digest(*paths: Path) -> str:
    """Hashes files and whole folders."""
    total = hashlib.sha256()
    for path in paths:
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                total.update(file.read_bytes())
    return total.hexdigest()[:16]


def make_images(folder: Path) -> None:
    """Draws 10 classes of 8 images."""
    from hgsl import build_dataset

    drawn = build_dataset("synthetic", split="all", num_classes=10, images_per_class=8, image_size=40)
    for row in range(len(drawn)):
        image, label, number = drawn[row]
        path = folder / drawn.class_names[label] / f"{number:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)


def make_commands(root: Path) -> dict[str, Command]:
    """Builds the commands; a finished run that eval, index and export read lies in ``root/model``."""
    images, disk = root / "images", root / "disk"
    data = ["--config", "configs/folder.yaml", "--data.root", str(images)]
    run, sparse, index = disk / "run", disk / "sparse", disk / "index"
    train = ["train", *data, *SMALL, "--run.dir", str(run)]
    sparsify = [
        "sparsify",
        "--config",
        "configs/flowers17_cs.yaml",
        "--data.name",
        "folder",
        "--data.root",
        str(images),
        *SMALL,
    ]
    sparsify += ["--sparsify.curve_every", "1", "--run.dir", str(sparse)]
    build = ["search", "index", "--checkpoint", str(root / "model"), "--images", str(images), "--labels", "folders"]
    build += ["--out", str(index), "--device", "cpu", "--batch-size", "4", "--workers", "2"]
    query = [sys.executable, "-m", "hgsl", "search", "query", "--index", str(index), "--json", "--device", "cpu"]
    scores = disk / "scores.json"

    def answers() -> str:
        done = subprocess.run([*query, str(next(images.rglob("*.png")))], capture_output=True, text=True, check=True)
        return hashlib.sha256(json.dumps(json.loads(done.stdout)["queries"]).encode()).hexdigest()[:16]

    def remove(*paths: Path) -> Callable[[], None]:
        def clean() -> None:
            for path in paths:
                shutil.rmtree(path, ignore_errors=True)
                path.unlink(missing_ok=True)

        return clean

    return {
        "train": Command(train, [*train, "--resume"], lambda: digest(run / "model.safetensors"), remove(run)),
        "sparsify": Command(
            sparsify, [*sparsify, "--resume"], lambda: digest(sparse / "model.safetensors"), remove(sparse)
        ),
        "index": Command(build, build, answers, remove(index)),
        "eval": Command(
            evaluate := ["eval", "--checkpoint", str(root / "model"), "--json", str(scores), "--data.workers", "2"],
            evaluate,
            lambda: hashlib.sha256(str(json.loads(scores.read_text())["per_query"]).encode()).hexdigest()[:16],
            remove(scores),
        ),
        "export": Command(
            export := ["export", str(root / "model"), "--out", str(disk / "model.onnx")],
            export,
            lambda: str((disk / "model.onnx").stat().st_size),
            remove(disk / "model.onnx"),
        ),
        "serve": Command(
            serve := ["search", "serve", "--index", str(root / "index"), "--port", "0", "--device", "cpu"],
            serve,
            lambda: "",
            lambda: None,
        ),
    }


class Process:
    """A command in a process group of its own, with everything it prints in one file."""

    def __init__(self, words: list[str], log: Path, clock_after: float | None = None) -> None:
        self.log = log
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        if clock_after is not None:
            folder = log.parent / "clock"
            folder.mkdir(exist_ok=True)
            (folder / "sitecustomize.py").write_text(CLOCK.format(delay=clock_after))
            environment["PYTHONPATH"] = os.pathsep.join([str(folder), environment.get("PYTHONPATH", "")])
        with log.open("wb") as sink:
            self.popen = subprocess.Popen(
                [sys.executable, "-m", "hgsl", *words],
                stdout=sink,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                env=environment,
            )

    @property
    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def wait(self, seconds: float) -> int | None:
        with suppress(subprocess.TimeoutExpired):
            return self.popen.wait(seconds)
        return None

    def signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            self.popen.send_signal(number)

    def signal_group(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.popen.pid, number)

    def members(self) -> list[int]:
        """Ids of the living processes of the session, without zombies."""
        found = []
        for entry in Path("/proc").iterdir():
            with suppress(OSError, ValueError, IndexError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if int(fields[3]) == self.popen.pid and fields[0] != "Z":
                    found.append(int(entry.name))
        return found

    def end(self) -> list[int]:
        """Ids of the processes that are left after the grace; they are killed."""
        deadline = time.monotonic() + SECONDS_TO_DIE
        while (left := self.members()) and time.monotonic() < deadline:
            time.sleep(0.05)
        self.signal_group(signal.SIGKILL)
        return left


@contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """Mounts a tmpfs on ``folder``; yields whether that worked."""
    folder.mkdir(exist_ok=True)
    options = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", str(folder)]
    mounted = os.geteuid() == 0 and subprocess.run(options, capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], capture_output=True)


class Faults:
    """Each fault is a method: it gets the running process and a delay, and undoes itself in ``undo``."""

    def __init__(self, root: Path, rng: random.Random, mounted: bool) -> None:
        self.root, self.rng = root, rng
        self.undo: Callable[[], None] = lambda: None
        self.names = ["none", "kill", "sigterm", "ctrl_c", "sigterm_group", "worker_killed", "image_changes"]
        self.names += ["image_truncated", "clock", "twice", "closed_pipe"]
        self.names += ["full_disk", "read_only"] if mounted else []

    def inject(self, name: str, process: Process) -> None:
        getattr(self, f"_{name}", lambda process: None)(process)

    def _kill(self, process: Process) -> None:
        process.signal(signal.SIGKILL)

    def _sigterm(self, process: Process) -> None:
        process.signal(signal.SIGTERM)

    def _ctrl_c(self, process: Process) -> None:
        process.signal_group(signal.SIGINT)

    def _sigterm_group(self, process: Process) -> None:
        process.signal_group(signal.SIGTERM)

    def _worker_killed(self, process: Process) -> None:
        workers = [pid for pid in process.members() if pid != process.popen.pid]
        if workers:
            with suppress(ProcessLookupError):
                os.kill(self.rng.choice(workers), signal.SIGKILL)

    def _replace_image(self, change: Callable[[bytes], bytes]) -> None:
        path = self.rng.choice(sorted((self.root / "images").rglob("*.png")))
        before, stat = path.read_bytes(), path.stat()
        path.write_bytes(change(before))

        def undo() -> None:
            path.write_bytes(before)
            os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))

        self.undo = undo

    def _image_changes(self, process: Process) -> None:
        other = self.rng.choice(sorted((self.root / "images").rglob("*.png"))).read_bytes()
        self._replace_image(lambda before: other)

    def _image_truncated(self, process: Process) -> None:
        self._replace_image(lambda before: before[: len(before) // 2])

    def _full_disk(self, process: Process) -> None:
        filler = self.root / "disk" / "filler"
        with suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(b"\0" * (1 << 16))
        self.undo = lambda: filler.unlink(missing_ok=True)

    def _read_only(self, process: Process) -> None:
        disk = str(self.root / "disk")
        subprocess.run(["mount", "-o", "remount,ro", disk], capture_output=True)  # busy while a file is open: no fault
        self.undo = lambda: subprocess.run(["mount", "-o", "remount,rw", disk], capture_output=True) and None


# The exit codes that a fault may lead to, besides that of success.
CODES = {
    "kill": {-signal.SIGKILL},
    "sigterm": {-signal.SIGTERM, 143},
    "sigterm_group": {-signal.SIGTERM, 143},
    "ctrl_c": {130, -signal.SIGINT},
    "worker_killed": {2},
    "image_changes": {2},
    "image_truncated": {2},
    "full_disk": {2},
    "read_only": {2},
    "twice": {2},
    "closed_pipe": {141, -signal.SIGPIPE},
}
CHANGES_DATA = {"image_changes", "image_truncated"}


def run_round(name: str, command: Command, fault: str, faults: Faults, root: Path, rng: random.Random) -> Outcome:
    """Runs a command under a fault, then again without one, and compares the result."""
    outcome = Outcome(name, fault)
    command.clean()
    delay = rng.uniform(0, 1.1) * command.seconds
    clock = delay if fault == "clock" else None
    process = Process(command.words, root / "logs" / "first.txt", clock)
    second = Process(command.words, root / "logs" / "second.txt") if fault == "twice" else None
    if fault == "closed_pipe":
        process.end()
        command.clean()
        return closed_pipe(command, outcome)
    time.sleep(delay)
    if process.popen.poll() is None:
        faults.inject(fault, process)
    ends_itself = fault in ("none", "clock", "twice", *CHANGES_DATA, "full_disk", "read_only", "worker_killed")
    code = process.wait(10 * command.seconds + 60 if ends_itself else SECONDS_TO_END)
    check_end(process, code, fault, outcome)
    if second:
        check_end(second, second.wait(10 * command.seconds + 60), fault, outcome)
    faults.undo()
    faults.undo = lambda: None
    if fault in CHANGES_DATA:  # what was read of the changed image is part of the result
        command.clean()
    if not outcome.problems:
        check_recovery(command, outcome, root)
    if outcome.problems:
        outcome.problems.append(f"after {delay:.2f} of {command.seconds:.1f} s: ...{process.text[-800:]}")
    return outcome


def check_end(process: Process, code: int | None, fault: str, outcome: Outcome) -> None:
    """The process has ended with all its children, with a documented exit code and without a traceback."""
    if code is None:
        outcome.problems.append("does not end")
    elif code != 0 and code not in CODES.get(fault, set()):
        outcome.problems.append(f"exit code {code}")
    if left := process.end():
        outcome.problems.append(f"leaves processes {left}")
    if "Traceback" in process.text:
        outcome.problems.append("prints a traceback")


def check_recovery(command: Command, outcome: Outcome, root: Path) -> None:
    """Without the fault, the command arrives at the result of an undisturbed run."""
    again = Process(command.resume, root / "logs" / "again.txt")
    code = again.wait(10 * command.seconds + 60)
    if code == 2 and "no run to resume" in again.text:  # it ended before the first save, so the folder is free
        again = Process(command.words, root / "logs" / "again.txt")
        code = again.wait(10 * command.seconds + 60)
    again.end()
    if code != 0:
        outcome.problems.append(f"cannot go on: exit code {code}: {again.text[-800:]}")
    elif (result := command.result()) != command.expected:
        outcome.problems.append(f"another result: {result}, expected {command.expected}")


def closed_pipe(command: Command, outcome: Outcome) -> Outcome:
    """``command | head -1``: silent, and the files are written."""
    words = [sys.executable, "-m", "hgsl", *command.words]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    errors = process.stderr.read().decode(errors="replace")
    code = process.wait(10 * command.seconds + 60)
    if "Traceback" in errors or "BrokenPipe" in errors:
        outcome.problems.append(f"closed pipe: {errors[-800:]}")
    if code not in {0, *CODES["closed_pipe"]}:
        outcome.problems.append(f"closed pipe: exit code {code}")
    elif command.result() != command.expected:
        outcome.problems.append("closed pipe: another result")
    return outcome


def serve_round(command: Command, fault: str, faults: Faults, root: Path, rng: random.Random) -> Outcome:
    """Starts the server, asks it, injects the fault, asks again; a signal ends it, nothing else does."""
    outcome = Outcome("serve", fault)
    process = Process(command.words, root / "logs" / "first.txt")
    deadline = time.monotonic() + 60
    address = ""
    while not address and time.monotonic() < deadline and process.popen.poll() is None:
        address = next((word for word in process.text.split() if word.startswith("http://")), "")
        time.sleep(0.05)
    if not address:
        outcome.problems.append(f"does not start: {process.text[-800:]}")
        process.end()
        return outcome
    ask(address, outcome)
    time.sleep(rng.uniform(0, 0.5))
    faults.inject(fault, process)
    if fault in ("kill", "sigterm", "ctrl_c", "sigterm_group"):
        if (code := process.wait(SECONDS_TO_END)) is None:
            outcome.problems.append("does not end")
        elif code not in {0, *CODES[fault]}:
            outcome.problems.append(f"exit code {code}")
    else:
        ask(address, outcome)
        process.signal(signal.SIGTERM)
        process.wait(SECONDS_TO_END)
    faults.undo()
    faults.undo = lambda: None
    if left := process.end():
        outcome.problems.append(f"leaves processes {left}")
    if "Traceback" in process.text:
        outcome.problems.append(f"prints a traceback: {process.text[-800:]}")
    return outcome


def ask(address: str, outcome: Outcome) -> None:
    try:
        with urllib.request.urlopen(address.rstrip("/") + "/api/index", timeout=20) as answer:
            json.load(answer)
    except (OSError, ValueError) as error:
        outcome.problems.append(f"no answer from {address}: {error}")


def prepare(root: Path) -> dict[str, Command]:
    """Draws the images, makes the model and the index that others read, and runs each command undisturbed."""
    (root / "logs").mkdir()
    make_images(root / "images")
    commands = make_commands(root)
    for name, command in commands.items():
        if name == "serve":
            continue
        start = time.monotonic()
        process = Process(command.words, root / "logs" / "reference.txt")
        if process.wait(600) != 0:
            raise SystemExit(f"{name} fails without any fault:\n{process.text}")
        command.seconds = time.monotonic() - start
        if name == "train":
            shutil.copytree(root / "disk" / "run", root / "model")
        if name == "index":
            shutil.copytree(root / "disk" / "index", root / "index")
        command.expected = command.result()
        print(f"{name}: {command.seconds:.1f} s undisturbed, result {command.expected}", flush=True)
    return commands


def main() -> int:
    """Returns 0 if no round showed a problem."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--minutes", type=float, default=60, help="How long (default 60).")
    parser.add_argument("--seed", type=int, default=0, help="Of the faults and their moments (default 0).")
    parser.add_argument("--only", nargs="+", metavar="COMMAND", help="Only these commands.")
    parser.add_argument("--faults", nargs="+", metavar="FAULT", help="Only these faults.")
    flags = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # not ignored, as in a background job of a shell
    if sys.platform == "linux":  # orphans of killed commands are adopted by this process, which waits for them
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    rng, counts, failed = random.Random(flags.seed), Counter[str](), []
    with tempfile.TemporaryDirectory(prefix="hgsl-soak-") as name:
        root = Path(name)
        with small_disk(root / "disk") as mounted:
            commands = prepare(root)
            faults = Faults(root, rng, mounted)
            deadline = time.monotonic() + 60 * flags.minutes
            while time.monotonic() < deadline:
                name, fault = rng.choice(flags.only or list(commands)), rng.choice(flags.faults or faults.names)
                if name == "serve":
                    if fault in ("twice", "closed_pipe", "clock", "worker_killed"):
                        continue
                    outcome = serve_round(commands[name], fault, faults, root, rng)
                else:
                    outcome = run_round(name, commands[name], fault, faults, root, rng)
                counts[f"{name} {fault}"] += 1
                state = "; ".join(outcome.problems) if outcome.problems else "ok"
                print(f"round {counts.total()}: {name}, {fault}: {state}", flush=True)
                if outcome.problems:
                    failed.append(f"{name}, {fault}")
    print(f"{counts.total()} rounds, {len(failed)} with a problem: {', '.join(failed) or 'none'}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
