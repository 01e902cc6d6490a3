"""Study: trials of sampled settings, by any number of processes on one database, until there are enough of them."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, redirect_stdout
from pathlib import Path
from typing import Any

import optuna
import torch
from optuna.trial import TrialState

from hgsl.common import ranks
from hgsl.common.errors import InputError, first_line
from hgsl.config import Config
from hgsl.engine.folder import run_folder
from hgsl.engine.loop.stop import Diverged
from hgsl.engine.parts.build import build_manifest
from hgsl.engine.tune import folder as study_folder
from hgsl.engine.tune.fold import fold_config, train_fold, without_evaluated
from hgsl.engine.tune.results import REASON, Outcome, settings_of, write_results
from hgsl.engine.tune.space import Choices, Dimension, in_short, with_settings

NAME = "hgsl"
FOLDER = "folder"  # user attribute: the folder of an interrupted trial that this one continues
MANIFEST = "manifest"  # user attribute of the study: hash of its images and their split
STARTED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)
LOCK_SECONDS = 60  # for which a process waits while another writes to the database
UNPRUNED = 5  # trials that are finished before the first is compared with their median


def tune(
    config: Config,
    folder: Path,
    space: Mapping[str, Dimension],
    search: Sequence[str],
    *,
    trials: int,
    folds: int,
    prune: bool = True,
    overwrite: bool = False,
    resume: bool = False,
) -> Outcome:
    """Searches the settings with the highest MAP@R on folds of the training classes, and writes the study folder.

    Every process of a study calls this, the first without ``resume``. A trial whose process was killed is continued by
    the next process that takes one.

    Args:
        config: The settings of all trials.
        folder: The study folder.
        space: Setting -> its values, from :func:`hgsl.engine.tune.space.parse_space`.
        search: The arguments that ``space`` was read from.
        trials: Number of trials of the whole study.
        folds: Number of folds, 1 to 4, that each trial is trained and measured on.
        prune: Whether a trial ends early when it is below the median of the others at the same epoch.
        overwrite: Whether an earlier study there may be replaced.
        resume: Whether to continue the study there, or join it.

    Raises:
        InputError: Settings, data or folder are not usable, or no trial was finished.
        Stopped: A signal ended the trial after its state was saved.
    """
    if ranks.launched_world_size() > 1:
        raise InputError("hgsl-tune trains in one process: start it several times, with --resume, instead of torchrun")
    study_folder.check(folder, overwrite=overwrite, resume=resume)
    images = _check_data(config, folds)
    if resume:
        study_folder.check_same(folder, config, search, folds)
    else:
        study_folder.begin(folder, config, search, folds, overwrite=overwrite)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with study_folder.in_use(folder):
        return Study(config, folder, space, folds, images, prune=prune).run(trials)


def _check_data(config: Config, folds: int) -> str:
    """Returns the hash of the images and their split, once every fold is known to hold no evaluated class."""
    manifests = []
    for fold in range(folds):
        try:
            manifests.append(build_manifest(fold_config(config, fold).data))
        except InputError as error:
            way_out = f"; --folds {fold} does without it" if fold else ""
            raise InputError(f"no fold {fold} of the training classes: {error}{way_out}") from None
        without_evaluated(manifests[-1])
    return manifests[0].split_hash


class Study:
    """One process's view of a study."""

    def __init__(
        self, config: Config, folder: Path, space: Mapping[str, Dimension], folds: int, images: str, *, prune: bool
    ) -> None:
        self.config, self.folder, self.space, self.folds = config, folder, space, folds
        pruner = optuna.pruners.MedianPruner(UNPRUNED) if prune else optuna.pruners.NopPruner()
        with study_folder.turn(folder):
            storage = optuna.storages.RDBStorage(
                f"sqlite:///{(folder / study_folder.DATABASE).absolute()}",
                engine_kwargs={"connect_args": {"timeout": LOCK_SECONDS}},
            )
            self.study = optuna.create_study(
                study_name=NAME, storage=storage, direction="maximize", load_if_exists=True, pruner=pruner
            )
            begun = self.study.user_attrs.get(MANIFEST, images)
            if begun != images:
                raise InputError(
                    f"the images are not those that the study in {folder} began with (manifest hash {images}, then "
                    f"{begun}): restore them, or start again with --overwrite"
                )
            self.study.set_user_attr(MANIFEST, images)

    def run(self, trials: int) -> Outcome:
        """Trains trials until ``trials`` of them are finished, pruned, or being trained by a process."""
        while True:
            with ExitStack() as working:
                with study_folder.turn(self.folder):
                    trial = self._take(trials, working)
                if trial is None:
                    break
                self._train(trial)
            with study_folder.turn(self.folder):
                self._write()
        with study_folder.turn(self.folder):
            outcome = self._write()
        if outcome.best is None:
            reasons = [trial.user_attrs[REASON] for trial in self.study.get_trials() if REASON in trial.user_attrs]
            raise InputError(f"no trial was finished{f', the first because {reasons[0]}' if reasons else ''}")
        return outcome

    def _write(self) -> Outcome:
        return write_results(self.folder, self.config, self.space, self.study, self.folds)

    def _take(self, trials: int, working: ExitStack) -> optuna.Trial | None:
        """Starts a trial and marks its folder as in use; None if enough were started."""
        self._put_back_interrupted()
        existing = self.study.get_trials(deepcopy=False)
        if sum(trial.state in STARTED for trial in existing) >= trials:
            return None
        # A sampler for each trial: every process of the study draws what one process alone would have drawn.
        self.study.sampler = optuna.samplers.TPESampler(seed=self.config.run.seed + len(existing))
        trial = self.study.ask()
        working.enter_context(study_folder.at_work(self._folder_of(trial.number, trial.user_attrs)))
        for name, dimension in self.space.items():
            _suggest(trial, name, dimension)
        return trial

    def _put_back_interrupted(self) -> None:
        """Queues the trials of ended processes anew, with their settings and folders."""
        for trial in self.study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
            trial_folder = self._folder_of(trial.number, trial.user_attrs)
            if study_folder.is_at_work(trial_folder):
                continue
            self.study.tell(trial.number, state=TrialState.FAIL)
            self.study.enqueue_trial(trial.params, user_attrs={FOLDER: trial_folder.name})

    def _folder_of(self, number: int, attributes: Mapping[str, Any]) -> Path:
        return self.folder / study_folder.TRIALS / attributes.get(FOLDER, f"{number:04}")

    def _train(self, trial: optuna.Trial) -> None:
        """Trains a trial on its folds, and tells the study how it ended."""
        settings = settings_of(trial.params, self.space)
        ranks.print_main(f"trial {trial.number}  {in_short(settings)}")
        trial_folder = self._folder_of(trial.number, trial.user_attrs)
        try:
            score = self._score(trial, trial_folder, settings)
        except optuna.TrialPruned as pruned:
            trial.set_user_attr(REASON, str(pruned))
            self.study.tell(trial, state=TrialState.PRUNED)
            ranks.print_main(f"trial {trial.number}  {pruned}")
        except (Diverged, InputError, torch.OutOfMemoryError) as error:
            trial.set_user_attr(REASON, first_line(error))
            self.study.tell(trial, state=TrialState.PRUNED)
            ranks.print_main(f"trial {trial.number}  no score: {first_line(error)}")
        else:
            self.study.tell(trial, score)
            ranks.print_main(f"trial {trial.number}  MAP@R {100 * score:.2f}, best {100 * self.study.best_value:.2f}")
        for path in trial_folder.glob(f"fold_*/{run_folder.STATE}"):
            path.unlink()  # with the moments of the optimizer, which nothing reads again

    def _score(self, trial: optuna.Trial, trial_folder: Path, settings: Mapping[str, Any]) -> float:
        """Returns the mean over the folds of the MAP@R that ``train.select`` would choose.

        Raises:
            TrialPruned: It is below the median of the other trials at the same epoch.
        """
        config = with_settings(self.config, settings)
        epochs = config.train.epochs
        scores: list[float] = []
        with (trial_folder / study_folder.LOG).open("a", encoding="utf-8") as log, redirect_stdout(log):
            for fold in range(self.folds):
                report = _reporter(trial, scores, epochs)
                curve = train_fold(fold_config(config, fold), trial_folder / f"fold_{fold}", report)
                scores.append(max(curve) if config.train.select == "best" else curve[-1])
        return statistics.fmean(scores)


def _reporter(trial: optuna.Trial, scores: Sequence[float], epochs: int) -> Callable[[int, float], None]:
    """Returns what reports an epoch of the next fold: the mean over the folds so far, that epoch's score included."""
    earlier = list(scores)

    def report(epoch: int, score: float) -> None:
        mean, step = statistics.fmean([*earlier, score]), len(earlier) * epochs + epoch
        trial.report(mean if math.isfinite(mean) else 0.0, step)
        if trial.should_prune():
            reason = f"MAP@R {100 * mean:.2f} is below the median of the earlier trials"
            raise optuna.TrialPruned(f"pruned after epoch {epoch + 1} of fold {len(earlier)}: {reason}")

    return report


def _suggest(trial: optuna.Trial, name: str, dimension: Dimension) -> None:
    if isinstance(dimension, Choices):
        trial.suggest_categorical(name, list(dimension.values))
    elif dimension.integer:
        low, high = int(dimension.low), int(dimension.high)
        trial.suggest_int(name, low, high, step=int(dimension.step or 1), log=dimension.log)
    else:
        trial.suggest_float(name, dimension.low, dimension.high, step=dimension.step, log=dimension.log)
