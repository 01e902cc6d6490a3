"""Losses and miners of pytorch-metric-learning: one line for each mistake, a note on unused settings, resumed runs."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from hgsl.cli import train
from hgsl.common import ranks
from hgsl.common.errors import InputError
from hgsl.common.library_parts import trainable
from hgsl.config import LossConfig
from hgsl.engine.folder.logging import read_metrics
from hgsl.engine.parts.objective import Objective, _library, build_objective
from tests.helpers import ROOT, TINY

pytest.importorskip("pytorch_metric_learning")

WORDS = [
    *("--config", str(ROOT / "configs" / "folder.yaml"), *TINY, "--train.epochs", "2", "--train.batch_size", "8"),
    *("--data.sampler", "m_per_class", "--eval.before", "false", "--eval.page", "false"),
]
TRIPLETS = {"name": "TripletMarginLoss"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "SelfSupervisedLoss"}, "SelfSupervisedLoss cannot be built with loss.options {} .*'loss'"),
        ({"name": "CrossBatchMemory"}, "CrossBatchMemory cannot be built .*'loss'"),
        ({"name": "MultipleLosses"}, "MultipleLosses cannot be built .*'losses'.*choose another class"),
        ({"name": "GenericPairLoss"}, "GenericPairLoss cannot be built .*'mat_based_loss'.*correct loss.options"),
        ({"name": "GenericPairLoss", "options": {"mat_based_loss": True}}, "does not train"),
        ({"name": "ManifoldLoss"}, "ManifoldLoss cannot be built .*'l'"),
        ({"name": "ManifoldLoss", "options": {"l": 6}}, "does not train"),
        ({"name": "P2SGradLoss"}, "cannot be built .*'descriptors_dim'"),
        ({"name": "RankedListLoss"}, "cannot be built .*'margin' and 'Tn'"),
        ({"name": "BaseMetricLossFunction"}, "does not train.*choose another loss"),
        ({"name": "WeightRegularizerMixin"}, "does not train"),
        ({"name": "VICRegLoss"}, "does not train on embeddings and labels"),
        ({"name": "DynamicSoftMarginLoss"}, "does not train on embeddings and labels .*backward"),
        ({**TRIPLETS, "miner": "BaseMiner"}, "loss.miner BaseMiner does not train.*another miner or loss"),
        ({**TRIPLETS, "miner": "TripletMarginMiner", "miner_options": {"margin": "foo"}}, "options .*foo.*correct"),
        ({**TRIPLETS, "options": {"margin": "foo"}}, "options {'margin': 'foo'} does not train.*correct the options"),
        ({"name": "ProxyAnchorLoss", "options": {"margin": "foo"}}, "options {'margin': 'foo'}"),
        ({"name": "ProxyAnchorLoss", "options": {"num_classes": "foo"}}, "cannot be built with loss.options .*foo"),
        ({**TRIPLETS, "options": {"distance": "cosine"}}, "TripletMarginLoss"),
    ],
)
def test_a_loss_that_does_not_train_is_one_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        build_objective(LossConfig(**settings), num_classes=4, embedding_size=6)
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is not None  # the library's own error


@pytest.mark.parametrize(
    "settings",
    [
        {"name": "ProxyAnchorLoss"},
        {"name": "RankedListLoss", "options": {"margin": 0.5, "Tn": 1.0}},
        {"name": "P2SGradLoss", "options": {"descriptors_dim": 6}},
        {"name": "HistogramLoss"},
        {**TRIPLETS, "miner": "DistanceWeightedMiner", "memory": 4},
    ],
)
def test_trying_a_loss_leaves_no_trace(settings: dict[str, Any]) -> None:
    torch.manual_seed(5)
    objective = build_objective(LossConfig(**settings), num_classes=4, embedding_size=6)
    after = torch.rand(4)
    torch.manual_seed(5)
    parameters = [torch.randn_like(value) for value in objective.parameters()]
    if not parameters:
        assert torch.equal(torch.rand(4), after)
    assert all(value.grad is None for value in objective.parameters())
    assert objective.get_extra_state().get("queue_idx", 0) == 0


def test_each_process_tries_a_loss_on_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "world_size", lambda: 2)  # without a group, to gather is an error
    assert build_objective(LossConfig(name="ContrastiveLoss", memory=8), 4, 6).gather


def test_unused_settings_of_the_default_loss_are_noted(capsys: pytest.CaptureFixture[str]) -> None:
    recipe = LossConfig(name="ProxyAnchorLoss", alpha=0.4, top_k=5, both_sides=1.0, centers="class_means", margin=0.1)
    build_objective(recipe, 4, 6)
    note = capsys.readouterr().out
    assert note.count("\n") == 1
    for name in ("alpha", "margin", "top_k", "both_sides", "centers"):
        assert f"loss.{name}" in note
    assert "loss.decorrelation" not in note
    assert note.endswith("without effect on ProxyAnchorLoss, whose arguments are loss.options\n")
    build_objective(LossConfig(name="ProxyAnchorLoss", options={"margin": 0.2}), 4, 6)
    assert not capsys.readouterr().out


def test_a_loss_that_leaves_nothing_to_train(
    photo_folder: Callable[..., Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = [*WORDS, "--data.root", str(photo_folder()), "--run.dir", str(tmp_path / "out")]
    assert train.main([*words, "--model.freeze", "backbone", "--loss.name", "TripletMarginLoss"]) == 2
    assert "error: nothing is left to train" in capsys.readouterr().err


def test_a_run_with_miner_and_memory_that_is_stopped_ends_in_the_same_weights(
    photo_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*WORDS, "--data.root", str(photo_folder(images=8)), "--train.epochs", "3", "--model.embedding_size", "16"]
    words += ["--loss.options.margin", "1.0"]  # no loss is zero
    words += ["--loss.name", "TripletMarginLoss", "--loss.memory", "16", "--loss.miner", "DistanceWeightedMiner"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert train.main([*words, "--run.dir", str(whole)]) == 0

    called, forward = [], Objective.forward

    def until_the_fifth_step(self: Objective, embeddings: Tensor, *others: Tensor | None) -> Tensor:
        called.append(len(embeddings))
        if len(called) == 2 + 5:  # two calls try the loss out
            signal.raise_signal(signal.SIGTERM)
        return forward(self, embeddings, *others)

    with monkeypatch.context() as patch:
        patch.setattr(Objective, "forward", until_the_fifth_step)
        assert train.main([*words, "--run.dir", str(cut)]) == 128 + signal.SIGTERM
    assert len(read_metrics(cut / "metrics.jsonl")) == 5
    assert not (cut / "model.safetensors").exists()
    assert train.main([*words, "--run.dir", str(cut), "--resume"]) == 0

    expected, resumed = load_file(whole / "model.safetensors"), load_file(cut / "model.safetensors")
    assert expected.keys() == resumed.keys()
    assert all(torch.equal(expected[key], resumed[key]) for key in expected)
    losses = [[record["loss"] for record in read_metrics(run / "metrics.jsonl")] for run in (whole, cut)]
    assert len(losses[0]) == 9
    assert losses[0] == losses[1]
    assert min(losses[0]) > 0


def _builds(settings: LossConfig) -> bool:
    try:
        build_objective(settings, num_classes=4, embedding_size=6)
    except InputError:
        return False
    return True


def test_the_losses_and_miners_that_a_message_offers_are_those_that_train() -> None:
    losses, miners = _library("losses"), _library("miners")
    options = {"RankedListLoss": {"margin": 0.4, "Tn": 0.1}, "P2SGradLoss": {"descriptors_dim": 6}}
    building = {name for name in losses if _builds(LossConfig(name=name, options=options.get(name, {})))}
    assert set(trainable(losses)) == building
    building = {name for name in miners if _builds(LossConfig(**{**TRIPLETS, "miner": name}))}
    assert set(trainable(miners)) == building
    with pytest.raises(InputError, match="use one of: AngularLoss") as caught:
        build_objective(LossConfig(name="Nope"), num_classes=4, embedding_size=6)
    assert "Base" not in str(caught.value)
    assert "Mixin" not in str(caught.value)
