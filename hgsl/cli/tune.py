"""``hgsl tune``: from a search space to a config file that is ready to train."""

import itertools
import shlex
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonargparse

from hgsl.cli._config_files import name_of_run
from hgsl.cli._main import run
from hgsl.cli._messages import explain
from hgsl.cli._names import check_names
from hgsl.cli._paths import check_paths
from hgsl.cli._settings import CONFIGS, build_parser, parse
from hgsl.cli._training import training_parser
from hgsl.cli._unused import check_used
from hgsl.common.device_names import check_device_name
from hgsl.common.errors import InputError
from hgsl.common.extras import require
from hgsl.common.progress import quiet_mode
from hgsl.config import Config
from hgsl.engine.tune import folder as study_folder
from hgsl.engine.tune.space import FORMS, Dimension, as_text, in_short, parse_space, with_settings

if TYPE_CHECKING:
    from hgsl.engine.tune.results import Outcome

DESCRIPTION = (
    "Search settings by MAP@R on class-disjoint folds of the training classes; the evaluated classes are never used. "
    "The same command with --resume continues a study, and joins one that another process works on. Ends with "
    "best.yaml, a config file for hgsl train."
)
FOLDS = 4  # of the training classes, see data.val_fold


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, 2 after bad input, 128 + signal after a signal (the state is saved)."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    return run(lambda: _tune(words), ends_process=arguments is None)


def _tune(words: list[str]) -> int:
    parser = training_parser(DESCRIPTION, Config)
    add = parser.add_argument
    add("--search", nargs="+", default=[], help=f"Settings to search and their values, each in the form {FORMS}.")
    add("--trials", type=int, default=20, help="Number of trials of the whole study.")
    add("--folds", type=int, default=2, help="Number of folds, 1 to 4, that each trial is trained and measured on.")
    add("--no-prune", action="store_true", help="Train every trial to its end.")
    if not any(word == "--config" or word.startswith("--config=") for word in words):
        words = ["--config", str(CONFIGS / "quickstart.yaml"), *words]
    config, flags = parse(parser, words)
    _check(config, flags)
    space = parse_space(flags.search, config)
    _check_values(config, space)
    _check_used(config, space, words)
    folder = Path(config.run.dir or Path("runs") / f"{name_of_run(list(map(str, flags.config)))}_tune")
    study_folder.check(folder, overwrite=flags.overwrite, resume=flags.resume)
    require("tune", "hgsl-tune")

    from hgsl.engine.loop.stop import Stopped
    from hgsl.engine.tune.study import tune

    try:
        with quiet_mode(flags.quiet):
            outcome = tune(
                config,
                folder,
                space,
                flags.search,
                trials=flags.trials,
                folds=flags.folds,
                prune=not flags.no_prune,
                overwrite=flags.overwrite,
                resume=flags.resume,
            )
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        return stopped.exit_code
    _print(outcome, folder)
    return 0


def _check(config: Config, flags: jsonargparse.Namespace) -> None:
    """Refuses settings under which a study has nothing to measure, or would measure the wrong thing."""
    if flags.resume and flags.overwrite:
        raise InputError("--resume continues the study in the folder, --overwrite replaces it: give one of the two")
    if not flags.search:
        raise InputError('nothing to search: give --search, such as --search "loss.alpha=log:0.1..1.6"')
    if flags.trials < 1:
        raise InputError(f"--trials must be at least 1, found {flags.trials}")
    if not 1 <= flags.folds <= FOLDS:
        raise InputError(f"--folds must be from 1 to {FOLDS}, found {flags.folds}")
    if config.train.epochs < 1:
        raise InputError("train.epochs is 0: a trial needs at least one epoch to be measured after")
    if config.train.select == "best_on_test":
        raise InputError("train.select 'best_on_test' chooses on evaluated images: use last, or best")
    if config.sparsify.granularity != "none":
        raise InputError(
            "sparsify.granularity: MAP@R alone would choose the densest network: set it to none and tune the dense "
            "training, then use hgsl-sparsify"
        )
    check_paths(config)
    check_device_name(config.run.device, "run.device")


def _check_values(config: Config, space: Mapping[str, Dimension]) -> None:
    """Refuses a value of the search space that its setting never takes, before the first trial."""
    parser = build_parser("")
    for name, dimension in space.items():
        for value in dimension.examples():
            try:
                parser.parse_args([f"--{name}={as_text(value)}"])
                check_names(_any_valid(config, space, name, value))
            except (ValueError, jsonargparse.ArgumentError) as error:
                raise InputError(f"--search {name}: {explain(str(error), Config)}") from None


def _any_valid(config: Config, space: Mapping[str, Dimension], name: str, value: Any) -> Config:
    """Returns settings with ``value`` that do not contradict each other, as it may need another searched setting.

    Raises:
        InputError: There are none with one value of another setting or without.
    """
    others = [(other, example) for other in space if other != name for example in space[other].examples()]
    for other in [{}, *({key: example} for key, example in others)]:
        try:
            return with_settings(config, {**other, name: value})
        except InputError:
            continue
    return with_settings(config, {name: value})


def _check_used(config: Config, space: Mapping[str, Dimension], words: Sequence[str]) -> None:
    """Refuses a setting that has no effect in any trial, as a flag or in the search space."""
    for name in space:
        if any(word == f"--{name}" or word.startswith(f"--{name}=") for word in words):
            raise InputError(f"--{name} has no effect, since --search gives its values: leave out one of the two")
    values = [(name, value) for name, dimension in space.items() for value in dimension.examples()]
    variants = []
    for (name, value), (other, other_value) in itertools.product(values, repeat=2):
        with suppress(InputError):  # they contradict each other
            variants.append(with_settings(config, {other: other_value, name: value}))
    check_used(config, [*words, *(f"--{name}" for name in space)], *variants)


def _print(outcome: "Outcome", folder: Path) -> None:
    best = folder / study_folder.BEST
    print(f"\n{outcome.trials} trials, {outcome.pruned} of them without a final score, {folder / study_folder.TABLE}")
    print(f"best: trial {outcome.best}, MAP@R {100 * outcome.score:.2f} on folds of the training classes")
    for name, value in outcome.settings.items():
        share = f"  ({100 * outcome.importance[name]:.0f} % of the variance)" if name in outcome.importance else ""
        print(f"  {in_short({name: value})}{share}")
    print(f"what mattered: {folder / study_folder.PLOT}")
    print(f"train with it: hgsl train --config {shlex.quote(str(best))}")
