"""Evaluations during training: where their scores arrive, early stopping, and its counter in a resumed run."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hgsl.cli import entry, eval_retrieval, train
from hgsl.config import Config, EvalConfig, TrainConfig
from hgsl.engine.folder.checkpoint import load_state
from hgsl.engine.folder.logging import read_metrics, validation_curves
from hgsl.engine.retrieval import Retrieval
from tests.helpers import ROOT, SMALL, fails, launch_ranks

pytestmark = pytest.mark.usefixtures("in_tmp_path")
HELD_OUT = ["--data.val_share", "0.5", "--run.dir", "out"]


def scored(monkeypatch: pytest.MonkeyPatch, *values: float) -> None:
    """Replaces the scores of validation images by ``values``, an epoch each."""
    measure, remaining = Retrieval.scores, iter(values)

    def scores(self: Retrieval, model: torch.nn.Module, split: str) -> dict[str, float]:
        return measure(self, model, split) if split == "test" else dict.fromkeys(("map@r", "recall@1"), next(remaining))

    monkeypatch.setattr(Retrieval, "scores", scores)


def report() -> dict:
    return json.loads(Path("out/report.json").read_text())


def validated() -> list[tuple[float, float]]:
    return validation_curves(read_metrics(Path("out/metrics.jsonl")))["MAP@R on val"]


@pytest.fixture
def table(photo_folder: Callable[..., Path]) -> Path:
    """A table with a validation split of its own."""
    root = photo_folder(classes=6)
    splits = ["train", "train", "val", "val", "test", "test"]
    rows = [
        f"{path.relative_to(root)},{path.parent.name},{splits[int(path.parent.name[-2:])]}"
        for path in sorted(root.glob("*/*.jpg"))
    ]
    (root / "birds.csv").write_text("path,label,split\n" + "\n".join(rows) + "\n")
    return root / "birds.csv"


def test_a_validation_split_of_a_table_is_evaluated_every_second_epoch(
    table: Path, capsys: pytest.CaptureFixture
) -> None:
    words = [*SMALL, "--data.name", "csv", "--data.root", str(table), "--run.dir", "out", "--train.epochs", "3"]
    assert train.main([*words, "--eval.every", "2"]) == 0
    printed = capsys.readouterr().out
    assert "epoch 2/3  val: Recall@1 " in printed
    assert "epoch 1/3  val" not in printed
    steps = [record["step"] for record in read_metrics(Path("out/metrics.jsonl"))]
    assert [step for step, _ in validated()] == [steps[-1] * 2 // 3, steps[-1]], "the last epoch is always evaluated"
    assert report()["selection"] == {"epoch_chosen": "last"}
    assert eval_retrieval.main(["--checkpoint", "out", "--curves", "curves.svg"]) == 0
    assert "score (%)" in Path("curves.svg").read_text()
    assert train.main([*words, "--eval.every", "0", "--overwrite"]) == 0
    assert not validation_curves(read_metrics(Path("out/metrics.jsonl")))


def test_patience_stops_and_keeps_the_best_epoch(
    photo_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    words = [*SMALL, *HELD_OUT, "--data.root", str(photo_folder(classes=8)), "--train.epochs", "6"]
    words += ["--train.select", "best", "--train.patience", "2", "--train.keep", "9"]
    scored(monkeypatch, 0.5, 0.6, 0.4, 0.6)
    assert train.main(words) == 0
    expected = {"epoch_chosen": "best", "epoch": 2, "score": 0.6, "stopped_early_after": 4, "patience": 2}
    assert report()["selection"] == expected
    assert "stopped early after epoch 4, 2 evaluations without a better MAP@R" in capsys.readouterr().out
    assert [score for _, score in validated()] == [0.5, 0.6, 0.4, 0.6], "an equal score is no better one"
    best, model = load_state(Path("out/best.safetensors")), load_file("out/model.safetensors")
    assert all(torch.equal(best[name], model[name]) for name in model)

    # Killed after the third epoch, of which the counter is one.
    third = sorted(Path("out/states").iterdir())[2]
    Path("out/state.safetensors").write_bytes(third.read_bytes())
    Path("out/report.json").unlink()
    scored(monkeypatch, 0.6)
    assert train.main([*words, "--resume"]) == 0
    assert report()["selection"] == expected

    # Killed after the last save: no further epoch is trained.
    Path("out/report.json").unlink()
    scored(monkeypatch)
    assert train.main([*words, "--resume"]) == 0
    assert report()["selection"] == expected


@pytest.mark.slow
def test_several_processes_stop_after_the_same_epoch(photo_folder: Callable[..., Path]) -> None:
    # The scores of the second process would never stop it.
    Path("script.py").write_text(
        "import os, sys, itertools\n"
        "from hgsl.cli import train\n"
        "from hgsl.engine.retrieval import Retrieval\n"
        "falling = (0.9 / number for number in itertools.count(1))\n"
        "rising = (number / 1000 for number in itertools.count(1))\n"
        "values, measure = falling if os.environ['RANK'] == '0' else rising, Retrieval.scores\n"
        "Retrieval.scores = lambda self, model, split: (\n"
        "    measure(self, model, split) if split == 'test' else dict.fromkeys(('map@r', 'recall@1'), next(values)))\n"
        "raise SystemExit(train.main(sys.argv[1:]))\n"
    )
    words = [*SMALL, *HELD_OUT, "--data.root", str(photo_folder(classes=8)), "--train.epochs", "9"]
    done = launch_ranks("script.py", *words, "--train.select", "best", "--train.patience", "2", processes=2)
    assert done.returncode == 0, done.stderr
    assert report()["selection"]["stopped_early_after"] == 3


def test_patience_needs_the_best_epoch_of_validation_images(
    photo_folder: Callable[..., Path], capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(ValueError, match=r"train\.select is 'best_on_test': set it to best"):
        TrainConfig(patience=3, select="best_on_test")
    with pytest.raises(ValueError, match=r"eval\.every is 0: set it to 1"):
        Config(train=TrainConfig(select="best"), eval=EvalConfig(every=0))
    words = [*SMALL, "--data.root", str(photo_folder()), "--run.dir", "out"]
    message = fails(train.main, [*words, "--train.select", "best", "--train.patience", "3"], capsys)
    assert "has no 'val' images" in message
    assert "data.val_share" in message


def test_a_quiet_training_prints_its_scores(photo_folder: Callable[..., Path], capsys: pytest.CaptureFixture) -> None:
    words = [*SMALL, *HELD_OUT, "--data.root", str(photo_folder(classes=8)), "--train.epochs", "1", "--quiet"]
    assert train.main(words) == 0
    captured = capsys.readouterr()
    lines = captured.out.strip().splitlines()
    assert "in percent" in lines[0]
    assert lines[-1].startswith("after training")
    assert captured.err == ""


def test_the_start_of_a_run_is_recorded(photo_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    photo_folder().rename("my photos")
    words = [*SMALL, "--data.root", "my photos", "--train.epochs", "0", "--run.dir", "out"]
    monkeypatch.setattr("sys.argv", ["hgsl"])  # which the command replaces
    assert entry.main(["train", *words]) == 0
    start = json.loads(Path("out/environment.json").read_text())["start"]
    assert shlex.split(start["command"]) == ["hgsl", "train", *words]
    assert start["date"].endswith("+00:00")
    if (ROOT / ".git").exists():
        head = (ROOT / ".git" / "HEAD").read_text().strip()
        assert head.startswith("ref: ") or start["commit"].startswith(head)
        assert len(start["commit"].removesuffix("+changes")) == 40
    assert "commit_of_working_directory" not in start
