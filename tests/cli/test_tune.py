"""``hgsl tune``: a study of a few trials on drawn butterflies, its folder, and how it goes on after a kill."""

import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import optuna
import pytest
import torch
import yaml
from PIL import Image

from hgsl.cli import train, tune
from hgsl.cli._settings import build_parser, parse
from hgsl.common.errors import InputError
from hgsl.config import Config
from hgsl.data import load_manifest
from hgsl.engine.folder import run_folder
from hgsl.engine.retrieval import Retrieval
from hgsl.engine.tune import folder as study_folder
from hgsl.engine.tune.fold import without_evaluated
from hgsl.engine.tune.study import NAME
from tests.helpers import ROOT, TINY, environment, fails

DRAWN = "{num_classes: 16, images_per_class: 4, image_size: 32}"
WORDS = [
    *("--config", "quickstart", *TINY, "--data.options", DRAWN, "--train.epochs", "1", "--train.batch_size", "16"),
    *("--loss.centers", "random", "--run.dir", "study"),
]
SEARCH = ["--search", "loss.alpha=log:0.1..1.6", "loss.top_k=1,2,null"]


def study_in(folder: Path) -> optuna.Study:
    return optuna.load_study(study_name=NAME, storage=f"sqlite:///{folder.absolute()}/{study_folder.DATABASE}")


def table_of(folder: Path) -> list[dict[str, str]]:
    with (folder / study_folder.TABLE).open() as file:
        return list(csv.DictReader(file))


@pytest.fixture
def evaluated_splits(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The splits whose images were asked for."""
    splits: list[str] = []
    images = Retrieval.images
    monkeypatch.setattr(
        Retrieval, "images", lambda self, split, *size: splits.append(split) or images(self, split, *size)
    )
    return splits


@pytest.mark.slow
def test_a_study_ends_with_a_config_file_to_train_and_never_reads_an_evaluated_class(
    in_tmp_path: Path, capsys: pytest.CaptureFixture[str], evaluated_splits: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = load_manifest("synthetic", num_classes=16, images_per_class=4, image_size=32)
    evaluated = set(manifest.ids[manifest.split == "test"].tolist())
    drawn: set[int] = set()
    build = Retrieval.__init__

    def recording(self: Retrieval, *arguments: object) -> None:
        build(self, *arguments)
        drawn.update(self.train_set.ids.tolist())

    monkeypatch.setattr(Retrieval, "__init__", recording)
    assert tune.main([*WORDS, *SEARCH, "--trials", "4", "--folds", "2"]) == 0
    folder = Path("study")
    assert set(evaluated_splits) <= {"train", "val"}
    assert drawn
    assert not drawn & evaluated

    trials = study_in(folder).get_trials()
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 4
    assert len({trial.params["loss.alpha"] for trial in trials}) == 4
    best = max(trials, key=lambda trial: trial.value)
    curves = [list(trial.intermediate_values.values()) for trial in trials]
    assert all(len(curve) == 2 for curve in curves), "a value a fold"
    assert [curve[-1] for curve in curves] == [trial.value for trial in trials], "the mean over both folds"

    config, _ = parse(build_parser(""), ["--config", str(folder / study_folder.BEST)])
    assert config.loss.alpha == best.params["loss.alpha"]
    assert str(config.loss.top_k) == best.params["loss.top_k"].replace("null", "None")
    assert config.data.val_fold is None, "it trains on all training classes"
    assert f"MAP@R {100 * best.value:.2f}" in (folder / study_folder.BEST).read_text().splitlines()[1]
    assert Image.open(folder / study_folder.PLOT).size[0] > 500
    assert [row["state"] for row in table_of(folder)] == ["complete"] * 4
    assert not list(folder.rglob("state.safetensors")), "states of finished trials take space for nothing"

    printed = capsys.readouterr().out
    assert f"best: trial {best.number}, MAP@R {100 * best.value:.2f}" in printed
    assert "epoch 1/1" not in printed, "the output of a training is in the log of its trial"
    assert "epoch 1/1" in (folder / study_folder.TRIALS / "0000" / study_folder.LOG).read_text()


@pytest.mark.slow
def test_a_study_goes_on_with_more_trials_and_draws_the_same_ones_as_in_one_go(
    in_tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tune.main([*WORDS, *SEARCH, "--folds", "1", "--trials", "2"]) == 0
    assert tune.main([*WORDS, *SEARCH, "--folds", "1", "--trials", "3", "--resume"]) == 0
    assert tune.main([*WORDS, *SEARCH, "--folds", "1", "--trials", "3", "--run.dir", "at_once"]) == 0
    parts, at_once = (study_in(Path(name)).get_trials() for name in ("study", "at_once"))
    assert [trial.params for trial in parts] == [trial.params for trial in at_once]
    assert [trial.value for trial in parts] == [trial.value for trial in at_once]

    message = fails(tune.main, [*WORDS, *SEARCH, "--folds", "1"], capsys)
    assert "study folder study exists: --resume continues it" in message
    message = fails(tune.main, [*WORDS, *SEARCH, "--folds", "2", "--resume"], capsys)
    assert "--folds is 2, and the study in study began with 1" in message
    message = fails(tune.main, [*WORDS, *SEARCH, "--folds", "1", "--train.epochs", "2", "--resume"], capsys)
    assert "train.epochs is 2, and the run in study began with 1" in message
    assert tune.main([*WORDS, *SEARCH, "--folds", "1", "--trials", "1", "--overwrite"]) == 0
    assert len(study_in(Path("study")).get_trials()) == 1


@pytest.mark.slow
def test_a_killed_trial_goes_on_where_it_was_with_the_same_settings(
    in_tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exception that nothing handles leaves the database and the files as a kill does."""
    words = [*WORDS, *SEARCH, "--folds", "2", "--train.epochs", "2", "--no-prune"]
    assert tune.main([*words, "--trials", "1", "--run.dir", "whole"]) == 0
    (whole,) = study_in(Path("whole")).get_trials()

    class Kill(BaseException):
        pass

    report = optuna.Trial.report

    def killed(self: optuna.Trial, value: float, step: int) -> None:
        report(self, value, step)
        if step == 3:  # the last epoch of the second fold, before its state is saved
            raise Kill

    with monkeypatch.context() as patch:
        patch.setattr(optuna.Trial, "report", killed)
        with pytest.raises(Kill):
            tune.main([*words, "--trials", "1"])
    assert study_in(Path("study")).get_trials()[0].state.name == "RUNNING"
    assert tune.main([*words, "--trials", "1", "--resume"]) == 0
    dead, alive = study_in(Path("study")).get_trials()
    assert (dead.state.name, alive.state.name) == ("FAIL", "COMPLETE")
    assert alive.params == dead.params == whole.params
    assert alive.intermediate_values == whole.intermediate_values
    assert alive.value == whole.value
    assert [path.name for path in Path("study/trials").iterdir()] == ["0000"]
    assert "resuming training at step" in Path("study/trials/0000", study_folder.LOG).read_text()


@pytest.mark.slow
def test_a_trial_below_the_median_is_pruned_with_the_reason(in_tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = iter([0.5, 0.5, 0.5, 0.5, 0.5, 0.4])

    def scores(self: Retrieval, model: torch.nn.Module, split: str) -> dict[str, float]:
        return {"map@r": next(values)}

    monkeypatch.setattr(Retrieval, "scores", scores)
    words = [*WORDS, "--folds", "1", "--trials", "6", "--search", "loss.alpha=0.1..1.6"]
    assert tune.main(words) == 0
    *others, last = study_in(Path("study")).get_trials()
    assert {trial.state.name for trial in others} == {"COMPLETE"}
    assert last.state.name == "PRUNED"
    assert table_of(Path("study"))[-1]["note"].endswith("MAP@R 40.00 is below the median of the earlier trials")


def test_classes_that_are_evaluated_are_refused_in_a_fold() -> None:
    manifest = load_manifest("synthetic", num_classes=16, images_per_class=4, image_size=32, val_fold=1)
    kept = without_evaluated(manifest)
    assert set(kept.split.tolist()) == {"train", "val"}
    assert len(kept) == 32
    labels = manifest.labels.copy()
    labels[np.flatnonzero(manifest.split == "test")[0]] = labels[np.flatnonzero(manifest.split == "val")[0]]
    object.__setattr__(manifest, "labels", labels)
    with pytest.raises(InputError, match="both in val and in test"):
        without_evaluated(manifest)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "nothing to search: give --search"),
        ([*SEARCH, "--trials", "0"], "--trials must be at least 1, found 0"),
        ([*SEARCH, "--folds", "5"], "--folds must be from 1 to 4, found 5"),
        ([*SEARCH, "--train.epochs", "0"], "train.epochs is 0: a trial needs at least one epoch"),
        ([*SEARCH, "--train.select", "best_on_test"], "train.select 'best_on_test' chooses on evaluated images"),
        ([*SEARCH, "--sparsify.granularity", "weight"], "MAP@R alone would choose the densest network"),
        ([*SEARCH, "--resume"], "no study to resume in study"),
        ([*SEARCH, "--resume", "--overwrite"], "give one of the two"),
        (["--search", "loss.top_k=1,many"], "--search loss.top_k: loss.top_k: expected a whole number or null"),
        (["--search", "loss.alpha=-1..1"], "--search loss.alpha: loss.alpha must be positive, found -1.0"),
        (["--search", "loss.name=ProxyAnchorLoss,TripletLoss"], "unknown loss.name 'TripletLoss': did you mean"),
        ([*SEARCH, "--loss.alpha", "0.5"], "--loss.alpha has no effect, since --search gives its values"),
        ([*SEARCH, "--optim.step_factor", "0.5"], "--optim.step_factor has no effect beside optim.schedule cosine"),
        (["--search", "optim.step_factor=0.1..0.5"], "--optim.step_factor has no effect beside optim.schedule cosine"),
        ([*SEARCH, "--run.dir", "photos"], "photos holds other files and is no study folder"),
        ([*SEARCH, "--data.protocol", "closed-set"], "no fold 0 of the training classes: synthetic has"),
        ([*SEARCH, "--data.options.num_classes", "12", "--folds", "3"], "such as 0.2; --folds 2 does without it"),
    ],
)
def test_a_mistake_is_refused_before_the_first_trial(
    words: list[str], message: str, in_tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("photos").mkdir()
    Path("photos/a.jpg").touch()
    assert message in fails(tune.main, [*WORDS, *words], capsys)
    assert not Path("study").exists()


@pytest.mark.slow
def test_a_value_may_need_another_searched_setting(in_tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """hard_set negatives needs a top_k, and scale_lr a learnable scale, which are searched too."""
    Path("mine.yaml").write_text("loss: {top_k: null, learnable_scale: false}")
    words = [*WORDS, "--config", "mine.yaml", "--folds", "1", "--trials", "2", "--optim.scale_lr", "1e-4"]
    space = ["loss.hard_set=all,negatives", "loss.top_k=1,2", "loss.learnable_scale=true,false"]
    assert tune.main([*words, "--search", *space, "--quiet"]) == 0
    printed = capsys.readouterr().out
    assert "best: trial" in printed
    assert "trial 0  " not in printed, "no progress"


def test_a_study_without_a_saved_trial_leaves_a_free_folder(in_tmp_path: Path) -> None:
    folder, config = Path("study"), Config()
    study_folder.begin(folder, config, ["loss.alpha=0.1..1"], 1, overwrite=False)
    study_folder.check(folder, overwrite=False, resume=False)
    fold = folder / study_folder.TRIALS / "0000" / "fold_0"
    fold.mkdir(parents=True)
    (fold / run_folder.CONFIG).touch()
    study_folder.begin(folder, config, ["loss.alpha=0.1..1"], 1, overwrite=False)
    assert not fold.exists()
    (folder / study_folder.SEARCH).unlink()  # interrupted between two files
    (folder / ".search.1234.partial.json").touch()
    study_folder.begin(folder, config, ["loss.alpha=0.1..1"], 1, overwrite=False)
    assert not list(folder.glob(".search*"))
    fold.mkdir(parents=True)
    (fold / run_folder.STATE).touch()
    with pytest.raises(InputError, match="study folder study exists: --resume continues it"):
        study_folder.check(folder, overwrite=False, resume=False)


def test_a_replacement_of_a_study_that_is_killed_can_be_repeated(
    in_tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, config = Path("study"), Config()
    study_folder.begin(folder, config, ["loss.alpha=0.1..1"], 1, overwrite=False)
    (folder / study_folder.TABLE).touch()
    unlink = Path.unlink
    for killed_at in (study_folder.DATABASE, study_folder.TABLE, study_folder.SEARCH, study_folder.CONFIG):
        (folder / study_folder.TRIALS / "0000").mkdir(parents=True)

        def killed(path: Path, missing_ok: bool = False, killed_at: str = killed_at) -> None:
            if path.name == killed_at:
                raise KeyboardInterrupt
            unlink(path, missing_ok)

        with monkeypatch.context() as context:
            context.setattr(Path, "unlink", killed)
            with pytest.raises(KeyboardInterrupt):
                study_folder.begin(folder, config, ["loss.alpha=0.1..1"], 1, overwrite=True)
        study_folder.begin(folder, config, ["loss.alpha=0.1..1"], 1, overwrite=True)
        assert (folder / study_folder.SEARCH).is_file()


@pytest.mark.slow
def test_the_best_config_trains(in_tmp_path: Path) -> None:
    assert tune.main([*WORDS, *SEARCH, "--trials", "2", "--folds", "1"]) == 0
    assert train.main(["--config", "study/best.yaml"]) == 0
    assert Path("runs/best/report.json").is_file()
    settings = yaml.safe_load(Path("runs/best/config.yaml").read_text())
    assert settings["loss"] == yaml.safe_load(Path("study/best.yaml").read_text())["loss"]


@pytest.fixture
def start(in_tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    def start(*words: str) -> subprocess.Popen[str]:
        command = [sys.executable, str(ROOT / "tools/tune.py"), *WORDS, *SEARCH, *words]
        return subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    return start


@pytest.mark.slow
def test_processes_share_a_study_and_one_that_is_killed_loses_nothing(
    start: Callable[..., subprocess.Popen[str]],
) -> None:
    words = ["--trials", "8", "--folds", "1", "--no-prune"]
    first = start(*words)
    wait_for(lambda: Path("study/trials/0000/fold_0/config.yaml").is_file(), first)
    second = start(*words, "--resume")
    wait_for(lambda: Path("study/trials/0001/fold_0/config.yaml").is_file(), first)
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    third = start(*words, "--resume")
    outputs = [process.communicate(timeout=240)[0] for process in (second, third)]
    assert [process.returncode for process in (second, third)] == [0, 0], outputs
    assert first.returncode == -signal.SIGKILL
    trials = study_in(Path("study")).get_trials()
    states = [trial.state.name for trial in trials]
    assert states.count("COMPLETE") == 8
    assert states.count("FAIL") <= 1, "the trial of the killed process"
    (failed,) = [trial for trial in trials if trial.state.name == "FAIL"] or [None]
    if failed:
        again = [trial for trial in trials if trial.user_attrs.get("folder") == f"{failed.number:04}"]
        assert [trial.params for trial in again] == [failed.params]
    finished = [trial for trial in trials if trial.state.name == "COMPLETE"]
    assert len({trial.params["loss.alpha"] for trial in finished}) == 8, "no trial was trained twice"


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Polls until ``condition`` holds; fails when the process ends before."""
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
