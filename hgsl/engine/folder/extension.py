"""Extension of a finished run: more epochs from its last weights, with a new learning-rate schedule.

As :mod:`hgsl.engine.folder.run_folder`, this module does not import torch.
"""

import shutil
from pathlib import Path
from typing import Any

import yaml

from hgsl.common import files
from hgsl.common.errors import InputError
from hgsl.config import Config
from hgsl.engine.folder import resume_checks, run_folder

# Settings that an extension may change: those of its schedule.
MAY_CHANGE = (
    *("train.epochs", "train.patience", "optim.lr", "optim.projection_lr", "optim.centers_lr", "optim.scale_lr"),
    *("optim.schedule", "optim.warmup", "optim.step_"),
)


def check(folder: Path, config: Config) -> None:
    """Checks that the finished run in ``folder`` can be trained on to ``train.epochs``.

    Raises:
        InputError: It is not finished, has other settings, as many epochs, no state, or masks.
        FileNotFoundError: There is no run.
    """
    report = run_folder.finished_report(folder)
    if report is None:
        raise InputError(f"the run in {folder} is not finished: --resume finishes it, then --extend trains on")
    if changed := resume_checks.difference(folder, config, MAY_CHANGE):
        raise InputError(f"{changed}: an extension may change train.epochs and the learning rates with their schedule")
    epochs = epochs_of(folder, report)
    if config.train.epochs <= epochs:
        raise InputError(
            f"train.epochs is {config.train.epochs}, and the run in {folder} has trained {epochs} epochs: give the "
            "number of all epochs together, such as --train.epochs " + str(2 * max(epochs, 1))
        )
    if config.sparsify.granularity != "none":
        raise InputError("--extend: the masks are hard after the last epoch: train from the start, with --overwrite")
    if not epochs or not (folder / run_folder.STATE).is_file():
        raise InputError(f"--extend: {folder} has no {run_folder.STATE} to start from: use --overwrite")
    run_folder.check_unused(folder)


def epochs_of(folder: Path, report: dict[str, Any]) -> int:
    """Returns the number of epochs that a finished run has trained."""
    settings = yaml.safe_load((folder / run_folder.CONFIG).read_text(encoding="utf-8"))
    return int(report.get("selection", {}).get("stopped_early_after", settings["train"]["epochs"]))


def extended_after(folder: Path, extend: bool = False) -> list[int]:
    """Returns the epochs after which the run in ``folder`` was finished and extended, now too if ``extend`` is set."""
    path = folder / run_folder.EXTENSIONS
    epochs: list[int] = files.read_json(path, "the extensions of a run")["after_epochs"] if path.is_file() else []
    report = run_folder.finished_report(folder) if extend else None
    return epochs if report is None else sorted({*epochs, epochs_of(folder, report)})


def begin(folder: Path, config: Config) -> None:
    """Turns a finished run into one that continues under ``config``, and keeps its settings and report in ``earlier``.

    The order of the steps leaves, when a process is killed, a finished or a resumable run.
    """
    report = run_folder.finished_report(folder)
    assert report is not None  # see check
    epochs = epochs_of(folder, report)
    earlier = folder / run_folder.EARLIER / f"epoch_{epochs}"
    earlier.mkdir(parents=True, exist_ok=True)
    for name in (run_folder.CONFIG, run_folder.REPORT):
        shutil.copyfile(folder / name, earlier / name)
    files.write_json(folder / run_folder.EXTENSIONS, {"after_epochs": extended_after(folder, extend=True)})
    (folder / run_folder.NO_MATCH).unlink(missing_ok=True)  # the threshold of the earlier weights
    (folder / run_folder.REPORT).unlink()
    files.write_text(folder / run_folder.CONFIG, config.to_yaml())
