"""``hgsl sparsify``: from a config file to a ticket and its costs."""

import sys
from collections.abc import Sequence
from functools import partial

from hgsl.cli._main import run
from hgsl.cli._training import add_dry_run, read, run_dry, run_engine, training_parser
from hgsl.common.errors import InputError
from hgsl.config import SparsifyRunConfig

DESCRIPTION = (
    "Search a sparse sub-network (a ticket) by Continuous Sparsification, train it, and measure its scores and costs. "
    "--sparsify.rounds 0 trains the dense network in the same way."
)
# Flags of the published script, and the settings that they set.
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
    return run(lambda: _search([_translated(word) for word in words]), ends_process=arguments is None)


def _search(words: list[str]) -> int:
    names = ", ".join(f"{short} = {full}" for short, full in PUBLISHED.items())
    parser = training_parser(f"{DESCRIPTION} Short names: {names}.", SparsifyRunConfig)
    add_dry_run(parser)
    if not any(word in ("-h", "--help", "--help-all") or word.startswith("--config") for word in words):
        raise InputError("no config: give a recipe, such as --config flowers17_cs or --config cifar10_cs, or a file")
    config, flags, folder = read(SparsifyRunConfig, parser, words)

    from hgsl.engine.sparsify.search import TicketSearch, search

    if flags.dry_run:
        return run_dry(partial(TicketSearch, folder=folder, resume=False), config, folder, flags)
    return run_engine(search, config, folder, flags)


def _translated(word: str) -> str:
    name, equals, value = word.partition("=")
    return f"{PUBLISHED.get(name, name)}{equals}{value}"
