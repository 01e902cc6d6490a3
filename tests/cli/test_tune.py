"""``hgsl tune``: a study of a few trials on drawn butterflies, its folder, and how it goes on after a kill."""

from pathlib import Path

import numpy as np
import optuna
import pytest

from hgsl.cli import tune
from hgsl.common.errors import InputError
from hgsl.data import load_manifest
from hgsl.engine.tune import folder as study_folder
from hgsl.engine.tune.fold import without_evaluated
from hgsl.engine.tune.study import NAME
from tests.helpers import TINY

DRAWN = "{num_classes: 16, images_per_class: 4, image_size: 32}"
WORDS = [
    *("--config", "quickstart", *TINY, "--data.options", DRAWN, "--train.epochs", "1", "--train.batch_size", "16"),
    *("--loss.centers", "random", "--run.dir", "study"),
]
SEARCH = ["--search", "loss.alpha=log:0.1..1.6", "loss.top_k=1,2,null"]


def study_in(folder: Path) -> optuna.Study:
    return optuna.load_study(study_name=NAME, storage=f"sqlite:///{folder.absolute()}/{study_folder.DATABASE}")


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


def test_a_value_may_need_another_searched_setting(in_tmp_path: Path) -> None:
    """hard_set negatives needs a top_k, which is searched too."""
    words = [*WORDS, "--folds", "1", "--trials", "3", "--loss.top_k", "null"]
    assert tune.main([*words, "--search", "loss.hard_set=all,negatives", "loss.top_k=1,2"]) == 0
