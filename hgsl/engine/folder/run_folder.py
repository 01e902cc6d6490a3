"""The folder of a run: who may write into it, and what lies in it."""

import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import yaml

from hgsl.common import files, ranks
from hgsl.common.errors import InputError
from hgsl.common.files import read_json, write_json, write_text
from hgsl.config import Config
from hgsl.version import __version__

CONFIG, REPORT, ENVIRONMENT, STATE = "config.yaml", "report.json", "environment.json", "state.safetensors"
STATES, STAGES, BEST = "states", "stages", "best.safetensors"
METRICS, BOARD, LAST_BATCH = "metrics.jsonl", "tensorboard", "nonfinite_batch.txt"
PAGE, CURVES, QUERIES = "report.html", "curves.png", "per_query.json"
TICKET, COMPACT, COSTS, LAYERS = "ticket.safetensors", "compact.safetensors", "costs.md", "layers.md"
SEEDS = "seeds.json"
LOCK = ".lock"
FOLDERS = (BOARD, STATES, STAGES)
# Where a run computes, from where it reads, what it reports and keeps: not what becomes of it.
MAY_CHANGE = (
    *("run.dir", "run.device", "run.precision", "run.threads", "run.compile", "run.deterministic"),
    *("data.root", "data.workers", "data.cache", "eval.", "train.keep", "train.save_every"),
    *("sparsify.dense_run", "sparsify.curve_every"),
)
WRITTEN = (
    *(CONFIG, REPORT, ENVIRONMENT, STATE, METRICS, LAST_BATCH, BEST, PAGE, CURVES, QUERIES),
    *("model.json", "model.safetensors"),
    *(TICKET, COMPACT, COSTS, LAYERS, SEEDS),
)


def check_free(folder: Path, *, overwrite: bool) -> None:
    """Refuses a folder that holds something already, unless it is an earlier run and ``overwrite`` is set.

    Raises:
        InputError: The folder is in use, or is no run folder, so that overwriting it would destroy something else.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise InputError(f"run folder {folder} is a file: name another with --run.dir")
    if {path.name for path in folder.iterdir()} <= {LOCK}:
        return
    if not (folder / CONFIG).is_file():
        raise InputError(f"{folder} holds other files and is no run folder: name another with --run.dir")
    if not overwrite:
        raise InputError(
            f"run folder {folder} exists: --overwrite replaces it, --resume goes on with it, --run.dir names another"
        )


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the folder for this process, and clears it of files that an earlier one was killed while writing.

    Raises:
        InputError: Another process is running there.
    """
    with files.locked(
        folder / LOCK, f"another run is writing to {folder}: wait for it, or name another with --run.dir"
    ):
        for place in (folder, folder / STATES):
            files.remove_partial(place)
        yield


def finished_report(folder: Path, config: Config) -> dict[str, Any] | None:
    """The report of the run in ``folder``, or None if it is not finished; says so if it is of other settings.

    Raises:
        FileNotFoundError: There is no run to resume.
    """
    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(f"no run to resume in {folder}: start one without --resume")
    if not (folder / REPORT).is_file():
        return None
    if found := _difference(folder, config):
        ranks.print_main(f"note: {found}: what follows is of that run")
    return read_json(folder / REPORT, "the report of a finished run")


def check_same(folder: Path, config: Config) -> None:
    """Refuses to go on with a run under settings that decide its weights and are not those that it began with.

    Raises:
        InputError: They are not; the message names the first.
    """
    if found := _difference(folder, config):
        raise InputError(f"{found}: give the same settings to go on with it, or --overwrite to start again")


def _difference(folder: Path, config: Config) -> str | None:
    """The first setting that decides a run's weights and is not what the run in ``folder`` began with, in words."""
    begun = _flat(yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8")) or {})
    given = _flat(yaml.safe_load(config.to_yaml()) or {})
    for key in {**given, **begun}:
        found, first = (repr(settings[key]) if key in settings else "not given" for settings in (given, begun))
        if found != first and not key.startswith(MAY_CHANGE):
            return f"{key} is {found}, and the run in {folder} began with {first}"
    return None


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in settings.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def create(folder: Path, config: Config, *, overwrite: bool) -> None:
    """Clears the folder of an earlier run and writes what is known at the start: the settings and the versions.

    Raises:
        InputError: Another run has taken the folder since it was asked for.
    """
    check_free(folder, overwrite=overwrite)
    for name in WRITTEN:  # not the whole folder: what a user has put beside them stays
        (folder / name).unlink(missing_ok=True)
    seeds = [path for path in folder.glob("seed_*") if (path / CONFIG).is_file()]
    for path in [*(folder / name for name in FOLDERS), *seeds]:
        shutil.rmtree(path, ignore_errors=True)
    write_text(folder / CONFIG, config.to_yaml())
    write_json(folder / ENVIRONMENT, {"versions": versions(), "machine": machine()})


def versions() -> dict[str, str]:
    """The versions that decide a run's numbers."""
    found = {"hgsl": __version__, "python": platform.python_version()}
    for name in ("torch", "torchvision", "timm", "faiss-cpu", "numpy", "pillow"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing"
    return found


def machine() -> dict[str, str | int]:
    """The processor, its threads and the accelerator, as a report states them."""
    found: dict[str, str | int] = {
        "platform": platform.platform(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found
