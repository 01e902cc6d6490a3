"""``tools/sparsify.py`` and ``hgsl-sparsify``: from a config file to a ticket and what it costs."""

import sys
from collections.abc import Sequence
from pathlib import Path

from hgsl.cli._main import run
from hgsl.cli._settings import build_parser, parse_as, to_yaml
from hgsl.common.errors import InputError
from hgsl.config import SearchConfig

DESCRIPTION = (
    "Search a sparse sub-network (a ticket) by Continuous Sparsification, train it, and measure what it is worth and "
    "what it costs. --sparsify.rounds 0 trains the dense network in the same way."
)
# Names of the published script, and the settings that they stand for.
PUBLISHED = {
    "--mask-initial-value": "--sparsify.mask_initial_value",
    "--final-temp": "--sparsify.final_temp",
    "--lmbda": "--sparsify.lmbda",
    "--rewind-epoch": "--sparsify.rewind_epoch",
    "--rounds": "--sparsify.rounds",
    "--epochs": "--train.epochs",
    "--batch-size": "--train.batch_size",
    "--lr": "--optim.lr",
    "--decay": "--optim.weight_decay",
    "--seed": "--run.seed",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, 2 after bad input, 128 + signal after a signal (the state is saved)."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    return run(lambda: _search([_translated(word) for word in words]))


def _search(words: list[str]) -> int:
    names = ", ".join(f"{short} = {full}" for short, full in PUBLISHED.items())
    parser = build_parser(f"{DESCRIPTION} Short names: {names}.", SearchConfig)
    parser.add_argument("--overwrite", action="store_true", help="Replace an earlier run in the run folder.")
    parser.add_argument("--resume", action="store_true", help="Go on with the run in the run folder.")
    if not any(word in ("-h", "--help") or word.startswith("--config") for word in words):
        raise InputError("give a config: --config configs/cifar10_cs.yaml or configs/flowers17_cs.yaml")
    config, flags = parse_as(SearchConfig, parser, words)
    if flags.resume and flags.overwrite:
        raise InputError("--resume goes on with the run in the folder, --overwrite replaces it: give one of the two")
    folder = Path(config.run.dir or Path("runs") / Path(str(flags.config[-1])).stem)

    from hgsl.engine.sparsify import search
    from hgsl.engine.stop import Stopped

    try:
        search(config, to_yaml(config), folder, overwrite=flags.overwrite, resume=flags.resume)
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        return stopped.exit_code
    print(f"\nrun folder: {folder}")
    return 0


def _translated(word: str) -> str:
    name, equals, value = word.partition("=")
    return f"{PUBLISHED.get(name, name)}{equals}{value}"
