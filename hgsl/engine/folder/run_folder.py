"""Run folder: the names of its files, its lock, and the checks that it is free, writable and large enough.

This module does not import torch, so that a command reports a mistake about its folder at once.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hgsl.common import disk, files
from hgsl.common.errors import InputError
from hgsl.common.files import read_json, write_json, write_text
from hgsl.common.no_match import FILE_NAME as NO_MATCH
from hgsl.common.split_record import FILE_NAME as SPLIT
from hgsl.config import Config

CONFIG, REPORT, ENVIRONMENT, STATE = "config.yaml", "report.json", "environment.json", "state.safetensors"
STATES, STAGES, BEST = "states", "stages", "best.safetensors"
METRICS, BOARD, LAST_BATCH = "metrics.jsonl", "tensorboard", "nonfinite_batch.txt"
TRACKERS, WANDB = "trackers.json", "wandb"
EXTENSIONS, EARLIER = "extensions.json", "earlier"
PAGE, CURVES, QUERIES = "report.html", "curves.png", "per_query.json"
TICKET, COMPACT, COSTS, LAYERS = "ticket.safetensors", "compact.safetensors", "costs.md", "layers.md"
SEEDS = "seeds.json"
LOCK = ".lock"
FOLDERS = (BOARD, STATES, STAGES, WANDB, EARLIER)
# Results, or a state to resume from: a run folder without any of them is free.
RESULTS = (REPORT, STATE, BEST, "model.safetensors", TICKET, SEEDS)
WRITTEN = (
    *(CONFIG, SPLIT, REPORT, ENVIRONMENT, STATE, METRICS, LAST_BATCH, BEST, PAGE, CURVES, QUERIES),
    *("model.json", "model.safetensors", TRACKERS, EXTENSIONS, NO_MATCH),
    *(TICKET, COMPACT, COSTS, LAYERS, SEEDS),
)


def check_single(folder: Path) -> None:
    """Checks that a run to resume is not the folder of several seeds, in which one more would be trained.

    Raises:
        InputError: It is.
    """
    if seeds := sorted(_seed_folders(folder)):
        raise InputError(
            f"{folder} holds runs of several seeds: --seeds continues them, --run.dir names one, such as {seeds[0]}"
        )


def check_unused(folder: Path) -> None:
    """Checks that the folder can be written, and that no other process does so.

    Raises:
        InputError: It cannot, or one does.
    """
    check_writable(folder)
    if (folder / LOCK).is_file():
        with locked(folder):
            pass


def check_free(folder: Path, *, overwrite: bool) -> None:
    """Checks that the folder is empty, or holds an earlier run and ``overwrite`` is set.

    The folder of a run that ended before its first save counts as free.

    Raises:
        InputError: The folder has a run, or other files, which are never overwritten.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise InputError(f"run folder {folder} is a file: name another with --run.dir")
    is_run = (folder / CONFIG).is_file()
    if _names(folder) <= {LOCK} or (is_run and overwrite):
        return
    if not is_run:
        raise InputError(f"{folder} holds other files and is no run folder: name another with --run.dir")
    if not _is_unsaved(folder):
        raise InputError(
            f"run folder {folder} exists: --overwrite replaces it, --resume continues it, --run.dir names another"
        )


def check_writable(folder: Path) -> None:
    """Checks that the folder can be written, or created.

    Raises:
        InputError: It cannot, such as on a read-only file system.
    """
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise InputError(f"run folder {folder}: {existing} is a file: name another with --run.dir")
    try:
        disk.check_writable(existing)
    except OSError as error:
        raise InputError(
            f"run folder {folder}: {existing} cannot be written ({error.strerror}): name another with --run.dir"
        ) from None


def check_space(folder: Path, needed: int) -> None:
    """Checks, before training, that the disk has ``needed`` bytes free for the state and the model.

    Raises:
        InputError: It has not.
    """
    try:
        disk.check_writable(folder, needed)
    except OSError as error:
        raise InputError(
            f"run folder {folder}, for the state of this run: {error.strerror}: free some space, or name another "
            "folder with --run.dir"
        ) from None


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Locks the folder for this process, and removes partial files of a killed process.

    Raises:
        InputError: Another process is running there.
    """
    refusal = f"another run is writing to {folder}: wait for it, or name another with --run.dir"
    with files.locked(folder / LOCK, refusal):
        for part in (folder, folder / STATES):
            files.remove_partial(part)
        yield


def finished_report(folder: Path) -> dict[str, Any] | None:
    """Returns the report of the run in ``folder``, or None if the run is not finished.

    Raises:
        FileNotFoundError: There is no run to resume.
    """
    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(f"no run to resume in {folder}: start one without --resume")
    if not (folder / REPORT).is_file():
        return None
    return read_json(folder / REPORT, "the report of a finished run")


def create(folder: Path, config: Config, environment: dict[str, Any], *, overwrite: bool) -> None:
    """Clears the folder of an earlier run and writes its settings and versions.

    Raises:
        InputError: Another run has started in the folder since it was checked.
    """
    check_free(folder, overwrite=overwrite)
    # Not the whole folder, as a user may have files there; and not the settings, without which it is no run folder.
    for path in [folder / name for name in WRITTEN if name != CONFIG]:
        path.unlink(missing_ok=True)
    for path in [*(folder / name for name in FOLDERS), *_seed_folders(folder)]:
        shutil.rmtree(path, ignore_errors=True)
    write_text(folder / CONFIG, config.to_yaml())
    write_json(folder / ENVIRONMENT, environment)


def _is_unsaved(folder: Path) -> bool:
    """Whether ``folder`` has a run without any saved result, and no other files."""
    run_files = {LOCK, *WRITTEN, *FOLDERS}
    names = _names(folder)
    seeds = _seed_folders(folder)
    return (
        not names & set(RESULTS)
        and names <= run_files | {path.name for path in seeds}
        and all(_is_unsaved(seed) for seed in seeds)
    )


def _names(folder: Path) -> set[str]:
    """The names in ``folder``, except the partial files of a killed process."""
    return {path.name for path in folder.iterdir() if not files.is_partial(path.name)}


def _seed_folders(folder: Path) -> list[Path]:
    return [path for path in folder.glob("seed_*") if (path / CONFIG).is_file()]
