"""Runs of one configuration with several seeds, and mean and spread of their scores."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hgsl.common import ranks
from hgsl.common.errors import InputError
from hgsl.common.files import read_json, write_json
from hgsl.common.tables import columns_of, format_cells, recall_of
from hgsl.config import Config
from hgsl.engine.folder import resume_checks, run_folder
from hgsl.engine.folder.environment import environment
from hgsl.engine.run import train


def train_seeds(
    config: Config,
    folder: Path,
    *,
    count: int,
    overwrite: bool = False,
    resume: bool = False,
) -> dict[str, Any]:
    """Trains with ``count`` seeds from ``run.seed`` on, in ``seed_0``, ``seed_1``, ... of the folder.

    ``resume`` continues interrupted runs: finished seeds are only reported, and seeds beyond ``count`` that are in the
    summary stay in it.

    Args:
        config: The settings of all runs but the seed.
        folder: The folder of all runs.
        count: Number of seeds.
        overwrite: Whether earlier runs there may be replaced.
        resume: Whether to continue the runs there.

    Returns:
        ``seeds``, and ``mean`` and sample ``std`` of every score after training, as in ``seeds.json``.

    Raises:
        InputError: Settings, data or folder are not usable, or there are several processes.
        Stopped: A signal ended the run after its state was saved.
    """
    if ranks.launched_world_size() > 1:
        raise InputError("--seeds trains one seed after the other in one process: under torchrun start each run.seed")
    if config.data.test_share == 0:
        raise InputError("--seeds compares scores, but data.test_share 0 leaves nothing to measure on: leave it out")
    resume_checks.check(folder, config, overwrite=overwrite, resume=resume)
    if resume and (folder / run_folder.STATE).is_file():
        raise InputError(f"{folder} holds a single run: leave out --seeds to resume it, or name another with --run.dir")
    with run_folder.locked(folder):
        if not resume:
            run_folder.create(folder, config, environment(), overwrite=overwrite)
        reports = {}
        for seed in _seeds(folder, config.run.seed, count):
            seed_config, seed_folder = replace(config, run=replace(config.run, seed=seed)), folder / f"seed_{seed}"
            ranks.print_main(f"\nseed {seed} in {seed_folder}")
            has_run = resume and (seed_folder / run_folder.CONFIG).is_file()
            reports[seed] = train(seed_config, seed_folder, resume=has_run)
        summary = spread([report["after"] for report in reports.values()])
        write_json(folder / run_folder.SEEDS, {"seeds": list(reports), **summary})
    table = seeds_table(reports, summary)
    ranks.print_main(f"\n{len(reports)} seeds, in percent: mean and standard deviation\n{table}", result=True)
    return {"seeds": list(reports), **summary}


def _seeds(folder: Path, first: int, count: int) -> list[int]:
    """The requested seeds, and those in the summary of ``folder``."""
    seeds = set(range(first, first + count))
    path = folder / run_folder.SEEDS
    if path.is_file():
        seeds.update(read_json(path, "the summary of several seeds").get("seeds", []))
    return sorted(seeds)


def spread(scores: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Returns mean and sample standard deviation of every score that all runs have."""
    keys = [key for key, value in scores[0].items() if isinstance(value, float) and all(key in run for run in scores)]
    return {
        "mean": {key: statistics.mean(run[key] for run in scores) for key in keys},
        "std": {key: statistics.stdev(run[key] for run in scores) for key in keys},
    }


def seeds_table(reports: Mapping[int, Mapping[str, Any]], summary: Mapping[str, Mapping[str, float]]) -> str:
    """Formats one row per seed, then mean and standard deviation."""
    rows = {f"seed {seed}": report["after"] for seed, report in reports.items()} | dict(summary)
    columns = columns_of(sorted(recall_of(summary["mean"])))
    cells = {name: [f"{100 * row[key]:.2f}" for key in columns] for name, row in rows.items()}
    return format_cells(cells, list(columns.values()))
