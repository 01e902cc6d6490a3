"""Stages of a run as data: one for plain training; rounds and a ticket for a ticket search."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from hgsl.config import Config, SparsifyRunConfig
from hgsl.engine.folder.run_folder import STAGES
from hgsl.engine.loop.loader import mixed_seed


@dataclass(frozen=True)
class Stage:
    """A part of a run with a separate optimizer and learning-rate schedule.

    Attributes:
        name: Name in logs and reports.
        epochs: Number of passes over the training images.
        seed: Seed of the order of the images and of their augmentation.
        masks: ``none``; ``soft``, trained while the temperature rises from 1 to ``sparsify.final_temp``; or ``ticket``,
            hard and fixed.
        ema: Decay of the running mean of the weights; None for no mean.
        log_folder: Folder of the metrics, relative to the run folder.
        checkpoint_epoch: Epoch before which the weights are saved for rewinding; None saves none.
        rewinds: Whether the stage starts from these weights.
        prunes: Whether the stage ends with pruning, s <- min(beta * s, s0).
        prune_temperature: The beta of pruning; None is the current temperature.
        epochs_before: Epochs of the stages that this one extends, from whose last state it starts; 0 for none.
    """

    name: str
    epochs: int
    seed: int
    masks: Literal["none", "soft", "ticket"] = "none"
    ema: float | None = None
    log_folder: str = "."
    checkpoint_epoch: int | None = None
    rewinds: bool = False
    prunes: bool = False
    prune_temperature: float | None = None
    epochs_before: int = 0


def training_stages(config: Config, extended_after: Sequence[int] = ()) -> list[Stage]:
    """The stage of plain training, with masks if ``config.sparsify`` has a granularity, and a stage per extension.

    Args:
        config: The settings; ``train.epochs`` are those of all stages together.
        extended_after: Epochs after which the run was finished, and then extended.
    """
    masks: Literal["none", "soft"] = "none" if config.sparsify.granularity == "none" else "soft"
    seed, ema = config.run.seed, config.train.ema
    ends = [*extended_after, config.train.epochs]
    stages = [Stage("training", ends[0], seed, masks, ema)]
    for number, (before, end) in enumerate(itertools.pairwise(ends), start=1):
        extension = Stage(f"extension {number}", end - before, mixed_seed(seed, number), masks, ema)
        stages.append(replace(extension, epochs_before=before))
    return stages


def search_stages(config: SparsifyRunConfig) -> list[Stage]:
    """Rounds of search and then the ticket; without rounds the dense network, trained in the same way."""
    rounds, rewind_epoch = config.sparsify.rounds, config.sparsify.rewind_epoch
    if not rounds:
        return [_search_stage(config, 0, "dense", "none")]
    ticket = _search_stage(config, rounds, "ticket", "ticket", rewinds=rewind_epoch is not None)
    ticket = replace(ticket, epochs=config.sparsify.ticket_epochs or config.train.epochs)
    if config.sparsify.method == "reconstruction":
        return [ticket]
    searching = [
        _search_stage(
            config,
            number,
            f"round {number + 1}",
            "soft",
            checkpoint_epoch=rewind_epoch if number == 0 else None,
            prunes=number + 1 < rounds,
        )
        for number in range(rounds)
    ]
    return [*searching, ticket]


def _search_stage(
    config: SparsifyRunConfig,
    number: int,
    name: str,
    masks: Literal["none", "soft", "ticket"],
    *,
    checkpoint_epoch: int | None = None,
    rewinds: bool = False,
    prunes: bool = False,
) -> Stage:
    return Stage(
        name,
        config.train.epochs,
        mixed_seed(config.run.seed, number),
        masks,
        # The weights under changing masks have no meaningful mean.
        None if masks == "soft" else config.train.ema,
        f"{STAGES}/{name.replace(' ', '-')}",
        checkpoint_epoch,
        rewinds,
        prunes,
        config.sparsify.prune_temperature,
    )
