"""``hgsl train``: from a config file to a trained model and its report."""

import shlex
import sys
from collections.abc import Sequence
from functools import partial

from hgsl.cli._main import run
from hgsl.cli._settings import CONFIGS
from hgsl.cli._training import add_dry_run, read, run_dry, run_engine, training_parser
from hgsl.common.errors import InputError
from hgsl.config import Config

DESCRIPTION = (
    "Train an embedding model and measure retrieval before and after. Without --config, quickstart trains on "
    "synthetic images."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, 2 after bad input, 128 + signal after a signal (the state is saved)."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    return run(lambda: _train(words), ends_process=arguments is None)


def _train(words: list[str]) -> int:
    parser = training_parser(DESCRIPTION, Config)
    parser.add_argument(
        "--seeds",
        type=int,
        default=1,
        help="Number of runs, with seeds from run.seed on; reports mean and standard deviation.",
    )
    parser.add_argument(
        "--extend",
        action="store_true",
        help="Train the finished run in the run folder on to train.epochs, from its last weights, with a new schedule.",
    )
    add_dry_run(parser)
    if not any(word == "--config" or word.startswith("--config=") for word in words):
        words = ["--config", str(CONFIGS / "quickstart.yaml"), *words]
    config, flags, folder = read(Config, parser, words)
    if flags.seeds < 1:
        raise InputError(f"--seeds must be at least 1, found {flags.seeds}")

    if flags.extend and (flags.seeds > 1 or flags.dry_run):
        raise InputError("--extend trains one run on: leave out --seeds and --dry-run")
    if flags.dry_run:
        from hgsl.engine.run import TrainingRun

        return run_dry(partial(TrainingRun, folder=folder, resume=False), config, folder, flags, runs=flags.seeds)
    if flags.seeds > 1:
        from hgsl.engine.seeds import train_seeds

        return run_engine(train_seeds, config, folder, flags, count=flags.seeds)
    from hgsl.engine.run import train

    code = run_engine(train, config, folder, flags, extend=flags.extend)
    if code == 0 and not flags.quiet and config.data.test_share > 0:
        print(f"the same scores again: hgsl eval --checkpoint {shlex.quote(str(folder))}")
    return code
