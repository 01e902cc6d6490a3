"""Results of a study: the best settings as a config file, a table of the trials, and a plot of what mattered."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import optuna
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, StrMethodFormatter
from optuna.trial import FrozenTrial, TrialState

from hgsl.common.files import atomic_path, write_text
from hgsl.config import Config
from hgsl.engine.tune import folder as study_folder
from hgsl.engine.tune.space import Choices, Dimension, as_text, with_settings

REASON = "reason"  # user attribute: why a trial has no score
PANELS = 3  # settings that the plot shows value by value, the most important ones
ENOUGH = 4  # finished trials from which importance is estimated


@dataclass(frozen=True)
class Outcome:
    """What a study has found.

    Attributes:
        trials: Number of trials that were finished or pruned.
        pruned: Number of those that were ended early.
        best: Number of the best trial; None if none was finished.
        score: Its MAP@R.
        settings: Its settings.
        importance: Setting -> share of the variance of MAP@R that it explains, the largest first; {} with few trials.
    """

    trials: int
    pruned: int
    best: int | None
    score: float
    settings: Mapping[str, Any]
    importance: Mapping[str, float]


def write_results(
    folder: Path, config: Config, space: Mapping[str, Dimension], study: optuna.Study, folds: int
) -> Outcome:
    """Writes the table of all trials and, as soon as a trial is finished, the best settings and the plot."""
    trials = study.get_trials(deepcopy=False)
    finished = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    pruned = sum(trial.state == TrialState.PRUNED for trial in trials)
    write_text(folder / study_folder.TABLE, _table(trials, list(space)))
    if not finished:
        return Outcome(pruned, pruned, None, math.nan, {}, {})
    best = max(finished, key=lambda trial: trial.value or 0.0)
    settings = settings_of(best.params, space)
    importance = importances(study, finished)
    outcome = Outcome(len(finished) + pruned, pruned, best.number, best.value or 0.0, settings, importance)
    write_text(folder / study_folder.BEST, _best_config(outcome, config, folds))
    _plot(folder / study_folder.PLOT, finished, space, importance)
    return outcome


def settings_of(params: Mapping[str, Any], space: Mapping[str, Dimension]) -> dict[str, Any]:
    """Returns the settings that Optuna's parameters stand for: values in place of their texts."""
    settings = {}
    for name, value in params.items():
        dimension = space[name]
        settings[name] = dimension.values[value] if isinstance(dimension, Choices) else value
    return settings


def importances(study: optuna.Study, finished: Sequence[FrozenTrial]) -> dict[str, float]:
    """Returns the share of the variance of MAP@R that each setting explains, by fANOVA; {} from too few trials."""
    scores = {trial.value for trial in finished}
    if len(finished) < ENOUGH or len(scores) < 2:
        return {}
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    return optuna.importance.get_param_importances(study, evaluator=evaluator)


def _best_config(outcome: Outcome, config: Config, folds: int) -> str:
    best = with_settings(replace(config, run=replace(config.run, dir=None)), outcome.settings)
    chosen = ", ".join(f"{name} {as_text(value)}" for name, value in outcome.settings.items())
    source = "fold 0" if folds == 1 else f"{folds} class-disjoint folds"
    return (
        f"# Chosen by hgsl tune on {source} of the training classes; no evaluated class was used.\n"
        f"# Trial {outcome.best} of {outcome.trials}, MAP@R {100 * outcome.score:.2f} %: {chosen}\n{best.to_yaml()}"
    )


def _table(trials: Sequence[FrozenTrial], names: Sequence[str]) -> str:
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["trial", "state", "map@r", "epochs", *names, "note"])
    for trial in trials:
        values = [trial.params.get(name, "") for name in names]
        reported = list(trial.intermediate_values.values())
        score = trial.value if trial.state == TrialState.COMPLETE else (reported[-1] if reported else None)
        shown = "" if score is None or not math.isfinite(score) else f"{score:.6f}"
        note = trial.user_attrs.get(REASON, "")
        rows.writerow([trial.number, trial.state.name.lower(), shown, len(reported), *values, note])
    return text.getvalue()


def _plot(
    path: Path, finished: Sequence[FrozenTrial], space: Mapping[str, Dimension], importance: Mapping[str, float]
) -> None:
    """Draws the importance of every setting, and MAP@R over the values of the most important ones."""
    names = (list(importance) or list(space))[:PANELS]
    figure = Figure(figsize=(3.6 * (1 + len(names)), 3.2), layout="constrained", dpi=150)
    bars, *panels = figure.subplots(1, 1 + len(names))
    _draw_importance(bars, importance, len(finished))
    for axis, name in zip(panels, names, strict=True):
        _draw_values(axis, name, space[name], finished)
    for axis in (bars, *panels):
        axis.spines[["top", "right"]].set_visible(False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary)


def _draw_importance(axis: Axes, importance: Mapping[str, float], count: int) -> None:
    if not importance:
        axis.axis("off")
        text = f"importance needs {ENOUGH} finished trials\nof different scores, there are {count}"
        axis.text(0.5, 0.5, text, ha="center", va="center")
        return
    names = list(importance)[::-1]
    axis.barh(names, [100 * importance[name] for name in names], color="tab:cyan")
    axis.set_xlabel("variance of MAP@R explained (%)")


def _draw_values(axis: Axes, name: str, dimension: Dimension, finished: Sequence[FrozenTrial]) -> None:
    scores = [100 * (trial.value or 0.0) for trial in finished]
    if isinstance(dimension, Choices):
        texts = list(dimension.values)
        axis.plot([texts.index(trial.params[name]) for trial in finished], scores, "o", alpha=0.6)
        axis.set_xticks(range(len(texts)), texts)
        axis.set_xlim(-0.5, len(texts) - 0.5)
    else:
        axis.plot([trial.params[name] for trial in finished], scores, "o", alpha=0.6, clip_on=False)
        if dimension.log:
            axis.set_xscale("log")
            axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axis.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axis.minorticks_off()
        axis.set_xlim(dimension.low, dimension.high)
    axis.set_xlabel(name)
    axis.set_ylabel("MAP@R (%)")
    axis.grid(alpha=0.3)
