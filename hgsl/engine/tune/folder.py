"""Study folder: the names of its files, the checks before it is used, and the locks of its processes and trials.

This module does not import torch, so that a command reports a mistake about its folder at once.
"""

import fcntl
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hgsl.common.errors import InputError
from hgsl.common.files import is_partial, read_json, remove_partial, write_json, write_text
from hgsl.config import Config
from hgsl.engine.folder import resume_checks, run_folder

CONFIG = run_folder.CONFIG  # the settings that all trials have in common
SEARCH, DATABASE, TRIALS = "search.json", "study.db", "trials"
BEST, PLOT, TABLE = "best.yaml", "tuning.png", "trials.csv"
LOG, TRIAL_LOCK = "log.txt", ".lock"
USERS, TURN = ".users.lock", ".turn.lock"


def check(folder: Path, *, overwrite: bool, resume: bool) -> None:
    """Checks that a study can start or resume in the folder.

    The folder of a study that was interrupted before a trial had saved anything counts as free.

    Raises:
        InputError: The folder is in use by something else, or cannot be written.
        FileNotFoundError: There is no study to resume.
    """
    is_study = (folder / SEARCH).is_file()
    if resume and not is_study:
        raise FileNotFoundError(f"no study to resume in {folder}: start one without --resume")
    if folder.is_file():
        raise InputError(f"study folder {folder} is a file: name another with --run.dir")
    names = {path.name for path in folder.iterdir() if not is_partial(path.name)} if folder.is_dir() else set()
    begun = {USERS, TURN, CONFIG} if USERS in names else set()
    if not is_study and not names <= begun:
        raise InputError(f"{folder} holds other files and is no study folder: name another with --run.dir")
    if is_study and not (overwrite or resume) and _has_results(folder):
        raise InputError(
            f"study folder {folder} exists: --resume continues it, also beside a running process; "
            "--overwrite replaces it, --run.dir names another"
        )
    run_folder.check_writable(folder)


def _has_results(folder: Path) -> bool:
    """Whether a trial of the study has saved a state or a result."""
    return (folder / BEST).is_file() or any(path.name in run_folder.RESULTS for path in (folder / TRIALS).rglob("*"))


def begin(folder: Path, config: Config, search: Sequence[str], folds: int, *, overwrite: bool) -> None:
    """Writes the settings of a new study, in place of an earlier one if ``overwrite`` is set.

    Raises:
        InputError: Another process is using the folder, or has started a study there since it was checked.
    """
    refusal = f"another process is using {folder}: wait for it, join it by --resume, or name another with --run.dir"
    with _flock(folder / USERS, fcntl.LOCK_EX | fcntl.LOCK_NB, refusal):
        check(folder, overwrite=overwrite, resume=False)
        remove_partial(folder)
        shutil.rmtree(folder / TRIALS, ignore_errors=True)
        for name in (DATABASE, f"{DATABASE}-journal", BEST, PLOT, TABLE, SEARCH, CONFIG):  # SEARCH makes it a study
            (folder / name).unlink(missing_ok=True)
        write_text(folder / CONFIG, config.to_yaml())
        write_json(folder / SEARCH, {"search": list(search), "folds": folds})


def check_same(folder: Path, config: Config, search: Sequence[str], folds: int) -> None:
    """Checks that the settings and the search space are those that the study started with.

    Raises:
        InputError: They differ; the message names the difference.
    """
    begun = read_json(folder / SEARCH, "the search space of a study")
    changed = resume_checks.difference(folder, config)
    for key, given in (("search", list(search)), ("folds", folds)):
        if begun.get(key) != given:
            changed = f"--{key} is {_words(given)}, and the study in {folder} began with {_words(begun.get(key))}"
    if changed:
        raise InputError(f"{changed}: give the same settings to continue it, or --overwrite to start again")


@contextmanager
def in_use(folder: Path) -> Iterator[None]:
    """Keeps other processes from replacing the study within the context, which any number may share."""
    with _flock(folder / USERS, fcntl.LOCK_SH):
        yield


@contextmanager
def turn(folder: Path) -> Iterator[None]:
    """Lets one process at a time take a trial or write results; the others wait."""
    with _flock(folder / TURN, fcntl.LOCK_EX):
        yield


@contextmanager
def at_work(trial_folder: Path) -> Iterator[None]:
    """Marks a trial as trained by this process until the context or the process ends, however it ends."""
    with _flock(trial_folder / TRIAL_LOCK, fcntl.LOCK_EX | fcntl.LOCK_NB, f"another process trains in {trial_folder}"):
        yield


def is_at_work(trial_folder: Path) -> bool:
    """Whether a running process trains the trial of this folder."""
    try:
        with at_work(trial_folder):
            return False
    except InputError:
        return True


@contextmanager
def _flock(path: Path, mode: int, refusal: str = "") -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, mode)
        except BlockingIOError:
            raise InputError(refusal) from None
        yield


def _words(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
