"""Parity of two processes with one; other losses, running means, the best epoch; runs that are interrupted."""

import json
import os
import resource
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hgsl.cli import eval_retrieval, train
from hgsl.engine.folder.checkpoint import load_state
from hgsl.engine.folder.logging import read_metrics
from tests.helpers import ROOT, SMALL, command, environment, fails, launch, launch_ranks

TRAIN = ROOT / "tools" / "train.py"
pytestmark = pytest.mark.usefixtures("in_tmp_path")


def losses(run: str) -> list[float]:
    return [record["loss"] for record in read_metrics(Path(run) / "metrics.jsonl")]


@pytest.mark.slow
@pytest.mark.parametrize(("optimizer", "start"), [("sgd", launch), ("adamw", launch_ranks)], ids=["sgd", "adamw"])
def test_two_processes_follow_one(
    photo_folder: Callable[..., Path], optimizer: str, start: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    """The first under torchrun itself."""
    words = [*SMALL, "--data.root", str(photo_folder(images=14)), "--model.freeze", "batch_norm"]
    words += ["--loss.both_sides", "0"]  # which gathers: a further rounding, that AdamW makes into 4e-5
    words += ["--optim.name", optimizer, "--train.epochs", "1", "--optim.lr", "1e-3", "--model.embedding_size", "16"]
    assert train.main([*words, "--run.dir", "one"]) == 0
    result = start(TRAIN, *words, "--run.dir", "two", processes=2)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("after training") == 1
    assert len(losses("one")) == 10
    assert losses("two") == pytest.approx(losses("one"), abs=1e-5)
    one, two = load_file("one/model.safetensors"), load_file("two/model.safetensors")
    for key in one:
        torch.testing.assert_close(one[key], two[key], atol=1e-5, rtol=1e-5)
    assert json.loads(Path("two/report.json").read_text())["processes"] == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "loss",
    [
        ["--loss.sharded", "true", "--loss.both_sides", "0"],
        ["--loss.sharded", "true", "--loss.both_sides", "0", "--loss.sparse_centers", "true"],
        ["--loss.both_sides", "1"],
        ["--loss.name", "ProxyAnchorLoss", "--loss.top_k", "null"],
        ["--loss.name", "TripletMarginLoss", "--loss.miner", "TripletMarginMiner", "--loss.top_k", "null"],
    ],
)
def test_two_processes_follow_one_with_every_type_of_loss(photo_folder: Callable[..., Path], loss: list[str]) -> None:
    pytest.importorskip("pytorch_metric_learning")
    words = [*SMALL, "--data.root", str(photo_folder(images=8)), "--model.freeze", "batch_norm", *loss]
    words += ["--train.epochs", "1", "--train.batch_size", "8", "--data.sampler", "m_per_class"]
    assert train.main([*words, "--run.dir", "one"]) == 0
    result = launch_ranks(TRAIN, *words, "--run.dir", "two", processes=2)
    assert result.returncode == 0, result.stderr
    if "--loss.sharded" not in loss:  # shards draw their own initial centers
        assert losses("two") == pytest.approx(losses("one"), abs=1e-5)


@pytest.mark.slow
def test_a_batch_that_cannot_be_divided_among_processes(photo_folder: Callable[..., Path]) -> None:
    words = [*SMALL, "--data.root", str(photo_folder()), "--train.batch_size", "3", "--run.dir", "two"]
    result = launch_ranks(TRAIN, *words, processes=2)
    assert result.returncode != 0
    assert "train.batch_size 3 cannot be divided among 2 processes" in result.stderr
    assert not Path("two").exists()


OTHERS = {
    "proxies": ["--loss.name", "ProxyAnchorLoss", "--loss.options.margin", "0.2"],
    "softmax": ["--loss.name", "NormalizedSoftmaxLoss"],
    "miner": ["--loss.name", "TripletMarginLoss", "--loss.miner", "TripletMarginMiner"],
    "memory": ["--loss.name", "ContrastiveLoss", "--loss.memory", "16"],
}


@pytest.mark.parametrize("name", OTHERS)
def test_losses_of_the_library_train_and_resume_under_the_same_recipe(
    photo_folder: Callable[..., Path], name: str
) -> None:
    pytest.importorskip("pytorch_metric_learning")
    words = [*SMALL, *OTHERS[name], "--loss.top_k", "null", "--data.root", str(photo_folder(images=8))]
    words += ["--train.ema", "0.9", "--train.batch_size", "8", "--data.sampler", "m_per_class", "--run.dir", "out"]
    assert train.main([*words, "--train.save_every", "2", "--train.keep", "9"]) == 0
    whole, whole_losses = Path("out/model.safetensors").read_bytes(), losses("out")
    assert all(loss >= 0 for loss in whole_losses)

    # The optimizer, the running mean and, with a memory, the queue of the loss come back in the middle of an epoch.
    states = {int(path.stem): path for path in Path("out/states").iterdir()}
    step = min(step for step in states if step % (len(whole_losses) // 2))
    Path("out/state.safetensors").write_bytes(states[step].read_bytes())
    for name in ("report.json", "model.safetensors"):
        Path("out", name).unlink()
    assert train.main([*words, "--resume"]) == 0
    assert losses("out") == whole_losses
    assert Path("out/model.safetensors").read_bytes() == whole


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--loss.name", "ProxyAnchrLoss"], "did you mean 'ProxyAnchorLoss'"),
        (["--loss.name", "ProxyAnchorLoss", "--loss.options.margn", "1"], "unexpected keyword argument 'margn'"),
        (["--loss.name", "ProxyAnchorLoss", "--loss.memory", "64"], "loss.memory 64 does not go with ProxyAnchorLoss"),
        (["--loss.name", "TripletMarginLoss", "--loss.miner", "TripletMiner"], "did you mean 'TripletMarginMiner'"),
    ],
)
def test_mistakes_about_losses(
    photo_folder: Callable[..., Path], capsys: pytest.CaptureFixture, more: list[str], message: str
) -> None:
    pytest.importorskip("pytorch_metric_learning")
    words = [*SMALL, "--loss.top_k", "null", "--data.root", str(photo_folder())]
    assert train.main([*words, *more]) == 2
    assert message in capsys.readouterr().err


def test_the_best_epoch_on_validation_classes_is_kept(photo_folder: Callable[..., Path]) -> None:
    words = [*SMALL, "--data.root", str(photo_folder(classes=8)), "--run.dir", "out", "--train.epochs", "4"]
    assert train.main([*words, "--data.val_share", "0.5", "--train.select", "best"]) == 0
    report = json.loads(Path("out/report.json").read_text())
    scores = [r["val/map@r"] for r in read_metrics(Path("out/metrics.jsonl")) if "val/map@r" in r]
    assert len(scores) == 4
    best = report["selection"]
    assert best == {"epoch_chosen": "best", "epoch": scores.index(max(scores)) + 1, "score": max(scores)}
    chosen = load_state(Path("out/best.safetensors"))
    kept = load_file("out/model.safetensors")
    assert all(torch.equal(chosen[key], kept[key]) for key in kept)
    assert not report["after"]["notes"]


def test_choosing_on_test_is_noted_in_the_report(
    photo_folder: Callable[..., Path], capsys: pytest.CaptureFixture
) -> None:
    words = [*SMALL, "--data.root", str(photo_folder()), "--run.dir", "out"]
    assert train.main([*words, "--train.select", "best_on_test", "--eval.before", "true"]) == 0
    report = json.loads(Path("out/report.json").read_text())
    assert "too high" in " ".join(report["after"]["notes"])
    assert not report["before"]["notes"], "no epoch was chosen before training"
    assert "note: the epoch was chosen on these images" in capsys.readouterr().out
    assert eval_retrieval.main(["--checkpoint", "out", "--json", "again.json"]) == 0
    assert "too high" in " ".join(json.loads(Path("again.json").read_text())["notes"])
    other = photo_folder(size=64, name="other")
    assert eval_retrieval.main(["--checkpoint", "out", "--data.root", str(other), "--json", "other.json"]) == 0
    assert "too high" not in " ".join(json.loads(Path("other.json").read_text())["notes"])
    assert train.main([*words, "--train.select", "best", "--overwrite"]) == 2


def test_the_running_mean_is_what_is_saved(photo_folder: Callable[..., Path]) -> None:
    words = [*SMALL, "--data.root", str(photo_folder())]
    assert train.main([*words, "--run.dir", "plain"]) == 0
    assert train.main([*words, "--run.dir", "mean", "--train.ema", "0.99"]) == 0
    assert losses("plain") == losses("mean")
    plain, mean = load_file("plain/model.safetensors"), load_file("mean/model.safetensors")
    assert any(not torch.equal(plain[key], mean[key]) for key in plain)


@pytest.mark.slow
def test_kill_9_loses_at_most_the_steps_since_the_last_save(photo_folder: Callable[..., Path]) -> None:
    words = [*SMALL, "--data.root", str(photo_folder(images=8)), "--train.epochs", "8", "--train.save_every", "2"]
    assert train.main([*words, "--run.dir", "whole"]) == 0
    process = subprocess.Popen(
        command(TRAIN, *words, "--run.dir", "cut"), env=environment(), stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    for line in process.stdout:
        if line.startswith("epoch 2/8"):
            process.kill()
            break
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert not list(Path("cut").glob("model.*"))
    assert train.main([*words, "--run.dir", "cut", "--resume"]) == 0
    whole, cut = load_file("whole/model.safetensors"), load_file("cut/model.safetensors")
    assert all(torch.equal(whole[key], cut[key]) for key in whole)
    assert losses("cut") == losses("whole")
    assert not list(Path("cut").glob(".state*"))


def test_a_finished_run_resumes_to_its_summary(
    photo_folder: Callable[..., Path], capsys: pytest.CaptureFixture
) -> None:
    words = [*SMALL, "--data.root", str(photo_folder()), "--run.dir", "out"]
    assert train.main(words) == 0
    before = Path("out/model.safetensors").stat().st_mtime_ns
    table = capsys.readouterr().out.splitlines()
    assert train.main([*words, "--resume"]) == 0
    printed = capsys.readouterr().out
    assert "out is finished" in printed
    assert next(line for line in table if line.startswith("after training")) in printed
    assert Path("out/model.safetensors").stat().st_mtime_ns == before
    assert "holds a single run: leave out --seeds" in fails(train.main, [*words, "--resume", "--seeds", "2"], capsys)
    assert train.main([*words, "--run.dir", "never", "--resume"]) == 2
    assert "no run to resume in never" in capsys.readouterr().err


@pytest.mark.slow
def test_a_second_run_in_the_same_folder_is_refused(
    photo_folder: Callable[..., Path], capsys: pytest.CaptureFixture
) -> None:
    words = [*SMALL, "--data.root", str(photo_folder()), "--run.dir", "out", "--train.epochs", "500"]
    process = subprocess.Popen(command(TRAIN, *words), env=environment(), stdout=subprocess.PIPE, text=True)
    assert process.stdout
    while not process.stdout.readline().startswith("epoch 1/"):
        assert process.poll() is None
    for flag in ("--resume", "--overwrite"):
        assert train.main([*words, flag]) == 2
        assert "another run is writing to out" in capsys.readouterr().err
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_keeps_the_last_state(photo_folder: Callable[..., Path]) -> None:
    """A limit on the file size, exceeded by the first save, simulates the full disk."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    words = [*SMALL, "--data.root", str(photo_folder()), "--run.dir", "out"]
    result = launch(TRAIN, *words, preexec_fn=limit)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert "state.safetensors" in result.stderr
    assert not list(Path("out").glob("*.safetensors"))
    assert train.main([*words, "--overwrite"]) == 0


def test_an_unwritable_run_folder(photo_folder: Callable[..., Path], capsys: pytest.CaptureFixture) -> None:
    Path("file").write_text("x")
    words = [*SMALL, "--data.root", str(photo_folder())]
    assert train.main([*words, "--run.dir", "file/run"]) == 2
    assert "file is a file: name another with --run.dir" in capsys.readouterr().err


@pytest.mark.slow
def test_a_signal_to_the_whole_group_saves_like_one_to_the_process(photo_folder: Callable[..., Path]) -> None:
    """As Ctrl-C in a terminal, which signals the loader processes as well."""
    words = [*SMALL, "--data.root", str(photo_folder(images=8)), "--run.dir", "out", "--data.workers", "2"]
    process = subprocess.Popen(
        command(TRAIN, *words, "--train.epochs", "2000"),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout
    while not process.stdout.readline().startswith("epoch 1/"):
        assert process.poll() is None
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(children) == 2
    for child in children:  # first they alone: the run goes on
        os.kill(int(child), signal.SIGINT)
        os.kill(int(child), signal.SIGTERM)
    assert process.stdout.readline().startswith("epoch 2/")
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGINT, errors
    assert "--resume continues from it" in errors
    assert Path("out/state.safetensors").is_file()


@pytest.mark.slow
def test_a_killed_worker_is_one_line(photo_folder: Callable[..., Path]) -> None:
    words = [*SMALL, "--data.root", str(photo_folder()), "--run.dir", "out", "--data.workers", "1"]
    process = subprocess.Popen(
        command(TRAIN, *words, "--train.epochs", "2000"),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    while not process.stdout.readline().startswith("epoch 1/"):
        assert process.poll() is None
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for child in children:
        os.kill(int(child), signal.SIGKILL)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2, errors
    assert "Traceback" not in errors
    assert "worker" in errors


def test_masks_that_close_the_network_are_named(
    photo_folder: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    closing = ["--sparsify.granularity", "weight", "--sparsify.lmbda", "10", "--sparsify.mask_lr", "5"]
    with pytest.warns(UserWarning, match="closes these layers fully"):
        assert train.main([*SMALL, "--data.root", str(photo_folder()), "--run.dir", "closed", *closing]) == 2
    assert "lower sparsify.lmbda or sparsify.mask_lr" in capsys.readouterr().err


def test_a_finished_run_is_not_the_answer_to_other_settings(
    photo_folder: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*SMALL, "--data.root", str(photo_folder()), "--train.epochs", "1", "--run.dir", "done"]
    assert train.main(words) == 0
    assert train.main([*words, "--resume"]) == 0
    assert "done is finished" in capsys.readouterr().out
    message = fails(train.main, [*words, "--resume", "--optim.lr", "0.5"], capsys)
    assert "optim.lr is 0.5, and the run in done began with " in message
    assert "--extend" not in message
    message = fails(train.main, [*words, "--resume", "--optim.lr", "0.5", "--loss.alpha", "1"], capsys)
    assert " differs too); it is finished: --overwrite trains from the start" in message
    message = fails(train.main, [*words, "--resume", "--train.epochs", "3"], capsys)
    assert "train.epochs is 3, and the run in done began with 1; it is finished: --extend trains on" in message


def test_several_seeds_resume_only_under_the_same_settings(
    photo_folder: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*SMALL, "--data.root", str(photo_folder()), "--train.epochs", "1", "--run.dir", "all"]
    assert train.main([*words, "--seeds", "2"]) == 0
    assert train.main([*words, "--seeds", "2", "--resume", "--optim.lr", "0.5"]) == 2
    assert "give the same settings to continue it (--config all/config.yaml)" in capsys.readouterr().err
    assert "holds runs of several seeds: --seeds continues them" in fails(train.main, [*words, "--resume"], capsys)
    assert not Path("all/report.json").exists()
