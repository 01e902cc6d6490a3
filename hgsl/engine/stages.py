"""Stages of a run as data: one for plain training; rounds and a ticket for a ticket search."""

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


def training_stages(config: Config) -> list[Stage]:
    """The only stage of plain training, with masks if ``config.sparsify`` has a granularity."""
    masks: Literal["none", "soft"] = "none" if config.sparsify.granularity == "none" else "soft"
    return [Stage("training", config.train.epochs, config.run.seed, masks, config.train.ema)]


def search_stages(config: SparsifyRunConfig) -> list[Stage]:
    """Rounds of search and then the ticket; without rounds the dense network, trained in the same way."""
    rounds, rewind_epoch = config.sparsify.rounds, config.sparsify.rewind_epoch
    if not rounds:
        return [_search_stage(config, 0, "dense", "none")]
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
    ticket = _search_stage(config, rounds, "ticket", "ticket", rewinds=rewind_epoch is not None)
    return [*searching, replace(ticket, epochs=config.sparsify.ticket_epochs or config.train.epochs)]


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
