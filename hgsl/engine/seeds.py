"""The same run with several seeds: what of a score is the method, and what is luck."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hgsl.common import ranks
from hgsl.common.errors import InputError
from hgsl.common.files import write_json
from hgsl.common.tables import columns_of, format_cells, recall_of
from hgsl.config import Config
from hgsl.engine.folder import run_folder
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

    A run with several seeds goes on where it was stopped: finished seeds are only reported.

    Args:
        config: The settings of all.
        folder: Of the runs.
        count: How many seeds.
        overwrite: Whether earlier runs there may be replaced.
        resume: Go on with what is there.

    Returns:
        ``seeds``, and ``mean`` and ``std`` (of a sample, n - 1) of every score after training, as in ``seeds.json``.

    Raises:
        InputError: Settings, data or folder are not usable, or there are several processes.
        Stopped: A signal ended the run after its state was saved.
    """
    if ranks.launched_world_size() > 1:
        raise InputError(
            "--seeds trains one after the other in one process: under torchrun start each run.seed by itself"
        )
    if not resume:
        run_folder.check_free(folder, overwrite=overwrite)
    elif (folder / run_folder.CONFIG).is_file():  # a mean is of runs under the same settings
        run_folder.check_same(folder, config)
    with run_folder.locked(folder):
        if not resume:
            run_folder.create(folder, config, overwrite=overwrite)
        reports = {}
        for seed in range(config.run.seed, config.run.seed + count):
            own, place = replace(config, run=replace(config.run, seed=seed)), folder / f"seed_{seed}"
            print(f"\nseed {seed} in {place}", flush=True)
            begun = resume and any((place / name).is_file() for name in (run_folder.STATE, run_folder.REPORT))
            reports[seed] = train(own, place, overwrite=overwrite or resume, resume=begun)
        found = spread([report["after"] for report in reports.values()])
        write_json(folder / run_folder.SEEDS, {"seeds": list(reports), **found})
    print(f"\n{count} seeds, in percent: mean and standard deviation\n{seeds_table(reports, found)}")
    return {"seeds": list(reports), **found}


def spread(scores: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Mean and standard deviation (n - 1) of every score that all have."""
    keys = [key for key, value in scores[0].items() if isinstance(value, float) and all(key in one for one in scores)]
    return {
        "mean": {key: statistics.mean(one[key] for one in scores) for key in keys},
        "std": {key: statistics.stdev(one[key] for one in scores) for key in keys},
    }


def seeds_table(reports: Mapping[int, Mapping[str, Any]], found: Mapping[str, Mapping[str, float]]) -> str:
    """One row a seed, then mean and deviation."""
    rows = {f"seed {seed}": report["after"] for seed, report in reports.items()} | dict(found)
    columns = columns_of(sorted(recall_of(found["mean"])))
    cells = {name: [f"{100 * row[key]:.2f}" for key in columns] for name, row in rows.items()}
    return format_cells(cells, list(columns.values()))
