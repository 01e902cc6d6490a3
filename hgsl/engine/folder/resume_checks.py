"""Check that a run can begin or resume in a folder: its settings against those of the run that is there.

As :mod:`hgsl.engine.folder.run_folder`, this module does not import torch.
"""

from pathlib import Path
from typing import Any

import yaml

from hgsl.common.errors import InputError
from hgsl.config import Config
from hgsl.engine.folder import run_folder

# Settings that a resumed run may change: device, paths, workers, what is reported and kept; not what is computed. The
# scores before training exist already, so image size, views and whitening of an evaluation stay as they were.
MAY_CHANGE = (
    *("run.dir", "run.device", "run.precision", "run.threads", "run.compile", "run.deterministic"),
    *("run.trackers", "run.log_every", "run.cuda_graphs", "run.autotune", "optim.fused"),
    *("data.root", "data.workers", "data.cache", "train.keep", "train.save_every"),
    *("eval.ks", "eval.batch_size", "eval.every", "eval.before", "eval.page"),
    *("sparsify.dense_run", "sparsify.curve_every"),
)


def check(folder: Path, config: Config, *, overwrite: bool, resume: bool) -> None:
    """Checks that a run under ``config`` can start or resume in the folder.

    Raises:
        InputError: The folder is in use, cannot be written, or has a run under other settings.
        FileNotFoundError: There is no run to resume.
    """
    if config.loss.teacher is not None and Path(config.loss.teacher).expanduser().resolve() == folder.resolve():
        raise InputError(
            f"loss.teacher {config.loss.teacher} is the run folder itself: name another folder with --run.dir"
        )
    if not resume:
        run_folder.check_free(folder, overwrite=overwrite)
    elif run_folder.finished_report(folder) is None:
        check_same(folder, config)
    else:
        check_finished(folder, config)
    run_folder.check_unused(folder)


def check_same(folder: Path, config: Config) -> None:
    """Checks that the settings which determine the weights are those that the run started with.

    Raises:
        InputError: They differ; the message names the first difference.
    """
    if changed := difference(folder, config):
        raise InputError(
            f"{changed}: give the same settings to continue it (--config {folder / run_folder.CONFIG}), "
            "or --overwrite to start again"
        )


def check_finished(folder: Path, config: Config) -> None:
    """Checks that a finished run, which is only reported, was trained under these settings.

    Raises:
        InputError: It was not, so that its scores are not those that are asked for.
    """
    if not (changed := difference(folder, config)):
        return
    more = list(changes(folder, config)) == ["train.epochs"] and not hasattr(config.sparsify, "rounds")
    extension = "--extend trains on from its last weights, with a new learning-rate schedule; " if more else ""
    raise InputError(
        f"{changed}; it is finished: {extension}--overwrite trains from the start, --run.dir names another folder, and "
        "the settings of the run show its scores"
    )


def difference(folder: Path, config: Config, may_change: tuple[str, ...] = ()) -> str | None:
    """Returns in words which settings that determine weights or scores differ from the run in ``folder``, or None.

    The first one is given with both values, the others by name.
    """
    changed = {key: values for key, values in changes(folder, config).items() if not key.startswith(may_change)}
    if not changed:
        return None
    first, *others = changed
    now, then = changed[first]
    also = f" ({', '.join(others)} differ{'s' if len(others) == 1 else ''} too)" if others else ""
    return f"{first} is {now}, and the run in {folder} began with {then}{also}"


def changes(folder: Path, config: Config) -> dict[str, tuple[str, str]]:
    """Returns the settings that determine weights or scores and differ: name -> both values, that of the run last."""
    original = _flat(yaml.safe_load((folder / run_folder.CONFIG).read_text(encoding="utf-8")) or {})
    given = _flat(yaml.safe_load(config.to_yaml()) or {})
    chooses = config.train.select != "last"  # among the evaluated epochs
    may_change = tuple(name for name in MAY_CHANGE if name != "eval.every" or not chooses)
    changed: dict[str, tuple[str, str]] = {}
    for key in {**given, **original}:
        now, then = (repr(settings[key]) if key in settings else "not given" for settings in (given, original))
        if now != then and not key.startswith(may_change):
            changed[key] = now, then
    return changed


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
