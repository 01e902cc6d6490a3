"""Common parts of the commands that train: flags, run folder, exit status after a signal."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import jsonargparse

from hgsl.cli._config_files import name_of_run
from hgsl.cli._help import list_in_epilog, promote
from hgsl.cli._paths import check_paths
from hgsl.cli._settings import AnyConfig, build_parser, parse_as, setting_names
from hgsl.cli._unused import check_used
from hgsl.common.device_names import check_device_name
from hgsl.common.errors import InputError
from hgsl.common.progress import quiet_mode
from hgsl.engine.folder import extension, resume_checks

MAIN_SETTINGS = (
    *("--config", "--run.dir", "--data.name", "--data.root", "--data.image_size", "--model.backbone"),
    *("--model.weights", "--train.epochs", "--train.batch_size", "--optim.lr"),
)
Engine = Callable[..., Any]  # (config, folder, *, overwrite, resume)


def training_parser(description: str, settings: type[AnyConfig]) -> jsonargparse.ArgumentParser:
    """Returns a parser of every setting, the main ones first in the help, and of ``--overwrite`` and ``--resume``."""
    parser = build_parser(description, settings)
    parser.usage = "%(prog)s [-h] [--config CONFIG] [--overwrite | --resume] [--SETTING VALUE ...]"
    promote(parser, MAIN_SETTINGS)
    groups = {field.name for field in fields(settings)}
    others = [name for name in setting_names(settings) if name not in groups and f"--{name}" not in MAIN_SETTINGS]
    list_in_epilog(parser, others)
    parser.add_argument("--overwrite", action="store_true", help="Replace an earlier run in the run folder.")
    parser.add_argument(
        "--resume", action="store_true", help="Continue the run in the run folder from its last saved state."
    )
    parser.add_argument(
        "--quiet", action="store_true", help="Print the final scores, warnings and errors only, and no progress."
    )
    return parser


def read(
    settings: type[AnyConfig], parser: jsonargparse.ArgumentParser, words: Sequence[str]
) -> tuple[AnyConfig, jsonargparse.Namespace, Path]:
    """Returns the settings, the command's flags and the run folder, with all checks that do not need torch.

    Raises:
        InputError: Settings or flags are unknown or contradict each other, or the run folder cannot be used.
        FileNotFoundError: A path to read from does not exist, or there is no run to resume.
    """
    config, flags = parse_as(settings, parser, words)
    extend = getattr(flags, "extend", False)  # of hgsl train
    if flags.resume and flags.overwrite:
        raise InputError("--resume continues the run in the folder, --overwrite replaces it: give one of the two")
    if flags.resume and flags.dry_run:
        raise InputError("--dry-run estimates a whole training: leave out --resume")
    if extend and (flags.resume or flags.overwrite):
        raise InputError("--extend trains a finished run on, --resume an interrupted one, --overwrite starts: give one")
    folder = Path(config.run.dir or Path("runs") / name_of_run(list(map(str, flags.config))))
    check_used(config, words)
    check_paths(config)
    check_device_name(config.run.device, "run.device")
    if extend:
        extension.check(folder, config)
    else:
        resume_checks.check(folder, config, overwrite=flags.overwrite, resume=flags.resume)
    return config, flags, folder


def run_engine(engine: Engine, config: Any, folder: Path, flags: jsonargparse.Namespace, **more: Any) -> int:
    """Calls ``engine`` and returns the exit code: 0, or 128 + signal after a signal, with the state saved."""
    from hgsl.engine.loop.stop import Stopped

    try:
        with quiet_mode(flags.quiet):
            engine(config, folder, overwrite=flags.overwrite, resume=flags.resume, **more)
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        return stopped.exit_code
    if not flags.quiet:
        print(f"\nrun folder: {folder}")
    return 0


def add_dry_run(parser: jsonargparse.ArgumentParser) -> None:
    """Adds ``--dry-run``, which :func:`run_dry` does."""
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="Print splits, steps, and time and memory as estimated from two measured steps, and write nothing.",
    )


def run_dry(
    build: Callable[..., Any], config: Any, folder: Path, flags: jsonargparse.Namespace, *, runs: int = 1
) -> int:
    """Prints the estimate of a run, or of several, and returns the exit code 0.

    Args:
        build: (config=, runtime=) -> the run with data and model built.
        config: The settings.
        folder: The run folder, which stays as it is.
        flags: Flags of the command.
        runs: How many such runs follow each other.
    """
    from hgsl.engine.dry_run import dry_run

    with quiet_mode(flags.quiet):
        dry_run(config, folder, build, runs=runs)
    return 0
