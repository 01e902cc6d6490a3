"""Extension of a finished run: where it starts, what it counts, what it keeps, and what it refuses."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from hgsl.cli import train
from hgsl.engine.folder.checkpoint import load_state
from hgsl.engine.folder.logging import read_metrics
from hgsl.engine.stages import training_stages
from tests.helpers import SMALL, fails

pytestmark = pytest.mark.usefixtures("in_tmp_path")


@pytest.fixture
def words(photo_folder: Callable[..., Path]) -> list[str]:
    return [*SMALL, "--data.root", str(photo_folder()), "--run.dir", "out", "--train.keep", "9"]


def report() -> dict:
    return json.loads(Path("out/report.json").read_text())


def test_an_extension_starts_from_the_last_weights_with_a_new_schedule(
    words: list[str], capsys: pytest.CaptureFixture
) -> None:
    assert train.main(words) == 0
    first, before = load_state(Path("out/state.safetensors"))["train"], report()
    Path("out/no_match.json").write_text("{}")
    steps = first["step"]
    assert train.main([*words, "--train.epochs", "4", "--optim.lr", "0", "--optim.centers_lr", "0", "--extend"]) == 0
    printed = capsys.readouterr().out
    assert "extension 1 of 2 epochs, after 2, with a new schedule" in printed
    assert "epoch 3/4" in printed
    assert "epoch 4/4" in printed

    # With rates of zero the weights stay those of the last state; the optimizer's moments go on from there.
    last = load_state(Path("out/state.safetensors"))
    assert last["stage"] == 1
    assert last["train"]["step"] == steps
    backbone = [name for name in first["model"] if name.startswith("backbone.") and name.endswith("weight")]
    assert all(torch.equal(first["model"][name], last["train"]["model"][name]) for name in backbone)
    counts = [state["train"]["optimizer"]["state"][0]["step"] for state in ({"train": first}, last)]
    assert counts[1] == 2 * counts[0]

    records = read_metrics(Path("out/metrics.jsonl"))
    assert [record["step"] for record in records] == list(range(1, 2 * steps + 1))
    rates = [record["lr/projection"] for record in records] if "lr/projection" in records[0] else []
    assert all(rate == pytest.approx(again) for rate, again in zip(rates, rates[steps:], strict=False))
    assert report()["extended_after"] == [2]
    assert not Path("out/no_match.json").exists(), "a threshold of the earlier weights"
    assert "trained on after epoch 2, with a new learning-rate schedule" in " ".join(report()["after"]["notes"])
    earlier = Path("out/earlier/epoch_2")
    assert json.loads((earlier / "report.json").read_text()) == before
    assert yaml.safe_load((earlier / "config.yaml").read_text())["train"]["epochs"] == 2
    assert report()["before"] == {}


@pytest.mark.slow
def test_an_extension_that_was_killed_resumes_to_the_same_end(words: list[str]) -> None:
    assert train.main(words) == 0
    finished = Path("out/state.safetensors").read_bytes()
    more = [*words, "--train.epochs", "4"]
    assert train.main([*more, "--extend"]) == 0
    end, states = Path("out/model.safetensors").read_bytes(), sorted(Path("out/states").iterdir())
    third_epoch = states[-2].read_bytes()
    for state in (finished, third_epoch):  # before the first save of the extension, and in its middle
        Path("out/state.safetensors").write_bytes(state)
        Path("out/report.json").unlink()
        assert train.main([*more, "--resume"]) == 0
        assert Path("out/model.safetensors").read_bytes() == end
        assert report()["extended_after"] == [2]
    assert train.main([*words, "--train.epochs", "5", "--extend"]) == 0
    assert report()["extended_after"] == [2, 4]
    assert load_state(Path("out/state.safetensors"))["stage"] == 2
    assert train.main([*words, "--overwrite"]) == 0
    assert "extended_after" not in report()
    assert not Path("out/earlier").exists()
    assert any(not torch.equal(load_file("out/model.safetensors")[name], value) for name, value in _tensors(end))


def _tensors(content: bytes) -> list[tuple[str, torch.Tensor]]:
    Path("end.safetensors").write_bytes(content)
    return list(load_file("end.safetensors").items())


def test_what_cannot_be_extended_is_refused(words: list[str], capsys: pytest.CaptureFixture) -> None:
    assert "no run to resume" in fails(train.main, [*words, "--extend"], capsys)
    assert train.main(words) == 0
    capsys.readouterr()
    for more, part in {
        "--train.epochs 2": "has trained 2 epochs: give the number of all epochs together, such as --train.epochs 4",
        "--train.epochs 4 --loss.alpha 1": "an extension may change train.epochs and the learning rates",
        "--train.epochs 4 --resume": "give one",
        "--train.epochs 4 --seeds 2": "leave out --seeds",
    }.items():
        assert part in fails(train.main, [*words, "--extend", *more.split()], capsys), more
    Path("out/report.json").unlink()
    assert "--resume finishes it" in fails(train.main, [*words, "--train.epochs", "4", "--extend"], capsys)


def test_stages_of_extensions_follow_each_other() -> None:
    from hgsl.config import Config, TrainConfig

    stages = training_stages(Config(train=TrainConfig(epochs=9)), [4, 7])
    assert [(stage.epochs_before, stage.epochs) for stage in stages] == [(0, 4), (4, 3), (7, 2)]
    assert len({stage.seed for stage in stages}) == 3, "other crops than in the epochs before"
