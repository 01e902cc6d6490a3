"""Dry run: what it prints, and that it leaves nothing behind."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from hgsl.cli import sparsify, train
from hgsl.cli._settings import build_parser, parse
from hgsl.engine.dry_run import dry_run
from hgsl.engine.run import TrainingRun
from tests.helpers import SMALL, fails

pytestmark = pytest.mark.usefixtures("in_tmp_path")


@pytest.mark.parametrize("mode", [[], ["--train.mode", "head", "--model.embedding_size", "8"]], ids=["full", "head"])
def test_a_dry_run_prints_an_estimate_and_writes_nothing(
    photo_folder: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    mode: list[str],
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(Path("cache").absolute()))
    words = [*SMALL, *mode, "--data.root", str(photo_folder(classes=8)), "--data.val_share", "0.5"]
    words += ["--data.cache", "resized", "--train.epochs", "7", "--run.dir", "runs/mine"]
    assert train.main([*words, "--dry-run", "--seeds", "3"]) == 0
    printed = capsys.readouterr().out
    assert "train  " in printed
    assert "7 epochs of 2 steps, estimated from two of them" in printed
    assert "MB in runs/mine" in printed
    assert "3 runs: 3 times as long" in printed
    assert not Path("runs").exists()
    assert not Path("cache").exists()

    config, _ = parse(build_parser(""), words)
    result = dry_run(config, Path("runs/mine"), partial(TrainingRun, folder=Path("runs/mine"), resume=False))
    assert (result.epochs, result.steps_per_epoch) == ({"training": 7}, 2)
    # 8 training, 8 validation and 16 test images: once each, or after 7 epochs, and after training.
    assert result.evaluated_images == (32 if mode else 7 * 8 + 16 + (8 if config.loss.centers == "class_means" else 0))
    assert result.evaluation_seconds > 0
    assert (result.training_seconds > 0) == (not mode)
    assert 2**26 < result.memory_bytes < 2**36


@pytest.mark.slow
def test_a_dry_run_of_a_search_counts_rounds_and_ticket(
    photo_folder: Callable[..., Path], capsys: pytest.CaptureFixture
) -> None:
    words = [*SMALL[: SMALL.index("--eval.before")], "--data.root", str(photo_folder(classes=8)), "--train.epochs", "4"]
    words += ["--loss.centers", "random", "--sparsify.rounds", "2", "--sparsify.granularity", "channel"]
    words += ["--sparsify.ticket_epochs", "5", "--sparsify.curve_every", "3", "--run.dir", "runs/ticket"]
    words += ["--eval.flip", "false"]
    assert sparsify.main([*words, "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "13 epochs (round 1: 4, round 2: 4, ticket: 5) of 4 steps, estimated from two of them" in printed
    # 16 test images: two points of each stage's curve, the ticket and the compacted ticket.
    assert "for 128 embeddings\n" in printed
    assert not Path("runs").exists()
    assert "leave out --resume" in fails(sparsify.main, [*words, "--dry-run", "--resume"], capsys)


def test_a_dry_run_is_of_a_whole_training(photo_folder: Callable[..., Path], capsys: pytest.CaptureFixture) -> None:
    words = [*SMALL, "--data.root", str(photo_folder()), "--run.dir", "out", "--train.epochs", "0"]
    assert train.main(words) == 0
    capsys.readouterr()
    assert "--overwrite replaces it" in fails(train.main, [*words, "--dry-run"], capsys)
    assert "leave out --resume" in fails(train.main, [*words, "--dry-run", "--resume"], capsys)
