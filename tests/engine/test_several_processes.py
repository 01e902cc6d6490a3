"""Runs of several processes: sharded centers match those of one process; all evaluate and stop alike."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from hgsl.cli import eval_retrieval, train
from hgsl.engine.distributed import is_lost_connection
from hgsl.engine.folder.checkpoint import load_state
from hgsl.engine.folder.logging import read_metrics
from hgsl.engine.parts.shards import clip_gradients, load_optimizer_state, optimizer_state
from hgsl.losses import ShardedHardGlobalSoftminLoss
from tests.helpers import ROOT, SMALL, launch_ranks

TRAIN = ROOT / "tools" / "train.py"
WORDS = [*SMALL, "--train.batch_size", "8", "--loss.both_sides", "0", "--optim.warmup", "0", "--data.test_share", "0.3"]
SHARDED = [*WORDS, "--loss.sharded", "true", "--optim.clip", "0.5", "--model.embedding_size", "16"]
SHARDED += ["--loss.centers", "class_means"]  # random ones are those of each process
pytestmark = pytest.mark.usefixtures("in_tmp_path")


def two_processes(*words: str, fails: bool = False) -> str:
    result = launch_ranks(TRAIN, *words, processes=2)
    assert bool(result.returncode) == fails, result.stderr
    return result.stderr


def losses(run: str) -> list[float]:
    return [record["loss"] for record in read_metrics(Path(run) / "metrics.jsonl")]


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_shards_match_one_process_and_resume_in_the_middle(photo_folder: Callable, optimizer: str) -> None:
    # Seven classes: the second process has fewer centers than the first.
    words = [*SHARDED, "--data.root", str(photo_folder(classes=10, images=8)), "--optim.name", optimizer]
    words += ["--optim.lr", "1e-3" if optimizer == "adamw" else "1e-2", "--train.keep", "3", "--train.save_every", "3"]
    assert train.main([*words, "--run.dir", "one"]) == 0
    two_processes(*words, "--run.dir", "two")
    assert losses("two") == pytest.approx(losses("one"), abs=2e-5)

    [middle] = [path for path in Path("two/states").iterdir() if load_state(path)["train"]["step"] == 9]
    for run, processes in (("again", 2), ("alone", 1)):
        Path(run).mkdir()
        Path(run, "config.yaml").write_bytes(Path("two/config.yaml").read_bytes())
        Path(run, "metrics.jsonl").write_bytes(Path("two/metrics.jsonl").read_bytes())
        Path(run, "state.safetensors").write_bytes(middle.read_bytes())
        resumed = [*words, "--run.dir", run, "--resume"]
        two_processes(*resumed) if processes == 2 else train.main(resumed)
    assert losses("again") == losses("two")
    assert losses("alone") == pytest.approx(losses("two"), abs=2e-5)
    whole, again = load_file("two/model.safetensors"), load_file("again/model.safetensors")
    assert all(torch.equal(whole[key], again[key]) for key in whole)


def test_one_process_clips_as_pytorch_does() -> None:
    torch.manual_seed(0)
    network, loss = nn.Linear(4, 3), ShardedHardGlobalSoftminLoss(5, 3, top_k=2)
    optimizer = torch.optim.AdamW([*network.parameters(), *loss.parameters()])
    gradients = []
    for clip in (lambda: clip_gradients(optimizer, 0.01, loss), None):
        optimizer.zero_grad()
        loss(network(torch.eye(4)), torch.arange(4)).backward()
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        norm = clip() if clip else float(nn.utils.clip_grad_norm_(parameters, 0.01))
        gradients.append((norm, torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])))
    (norm, ours), (expected_norm, expected) = gradients
    assert norm == pytest.approx(expected_norm, rel=1e-6)
    torch.testing.assert_close(ours, expected)


def test_an_optimizers_state_returns_with_its_moments() -> None:
    torch.manual_seed(0)
    loss = ShardedHardGlobalSoftminLoss(5, 3, top_k=2)
    optimizers = [torch.optim.AdamW(loss.parameters(), lr=0.1) for _ in range(2)]
    loss(torch.randn(4, 3), torch.arange(4)).backward()
    optimizers[0].step()
    state = optimizer_state(optimizers[0], loss)
    load_optimizer_state(optimizers[1], state, loss)
    assert optimizers[1].state_dict()["state"].keys() == state["state"].keys()
    torch.testing.assert_close(optimizers[1].state[loss.centers], optimizers[0].state[loss.centers])


def test_the_end_of_another_process_is_known_by_the_message_of_a_collective() -> None:
    gloo = (
        "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:545] Read error [127.0.0.1]:1: Connection reset by peer."
    )
    nccl = "NCCL error: remote process exited or there was a network error, NCCL version 2.27"
    assert is_lost_connection(RuntimeError(gloo))
    assert is_lost_connection(torch.distributed.DistBackendError(nccl))
    assert not is_lost_connection(RuntimeError("CUDA out of memory"))
    assert not is_lost_connection(BrokenPipeError(32, "Broken pipe"))


@pytest.mark.slow
def test_every_process_evaluates_the_saved_model(photo_folder: Callable, capsys: pytest.CaptureFixture) -> None:
    """Each process has batch statistics of its own; this network also has weights that no embedding depends on."""
    photos = str(photo_folder(classes=10, images=8))
    words = [*WORDS, "--data.root", photos, "--model.freeze", "none", "--model.backbone", "mobilenetv3_small_050"]
    two_processes(*words, "--run.dir", "two", "--optim.lr", "1e-2", "--train.epochs", "3", "--eval.batch_size", "8")
    report = json.loads(Path("two/report.json").read_text())["after"]
    words = ["--checkpoint", "two", "--data.root", photos, "--run.device", "cpu", "--json", "again.json"]
    assert eval_retrieval.main(words) == 0, capsys.readouterr().err
    again = json.loads(Path("again.json").read_text())
    assert again["map@r"] == pytest.approx(report["map@r"], abs=1e-9)


@pytest.mark.slow
def test_a_loss_that_is_not_finite_names_the_images_of_all(photo_folder: Callable) -> None:
    words = [*WORDS, "--data.root", str(photo_folder(classes=10, images=8)), "--run.dir", "two", "--optim.clip", "null"]
    errors = two_processes(*words, "--optim.lr", "1e30", fails=True)
    assert "the loss is nan at step 2" in errors
    assert len(set(Path("two/nonfinite_batch.txt").read_text().split())) == 8
