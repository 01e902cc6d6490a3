"""Training from Python: settings from files, callbacks and their moments, and errors in them."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import hgsl
from hgsl.config import Config
from hgsl.engine.callbacks import call_callbacks
from hgsl.engine.folder.checkpoint import load_state
from hgsl.engine.folder.logging import read_metrics
from hgsl.engine.loop.stop import StopRequest
from tests.helpers import SMALL

pytestmark = pytest.mark.usefixtures("in_tmp_path")


class Recorder(hgsl.Callback):
    """Records the moments; an epoch may be set to fail after."""

    def __init__(self, fails_after: int | None = None) -> None:
        self.moments: list[Any] = []
        self.fails_after = fails_after

    def on_step(self, step: int, values: dict[str, float]) -> None:
        self.moments.append((step, values["loss"]))
        values.clear()  # data of its own: the log still has it
        if step == self.fails_after:
            raise KeyError("disk of the callback")

    def on_epoch(self, epoch: int, values: dict[str, float]) -> None:
        self.moments.append((f"epoch {epoch}", values["loss"], values["val/map@r"]))

    def on_end(self, report: dict[str, Any]) -> None:
        self.moments.append(report)


def config_of(root: Path) -> Config:
    settings = dict(zip(SMALL[2::2], SMALL[3::2], strict=True))
    settings = {name.removeprefix("--"): value for name, value in settings.items()}
    return hgsl.load_config(SMALL[1], settings={**settings, "data.root": root, "data.val_share": 0.5})


def test_callbacks_see_steps_epochs_and_the_end(photo_folder: Callable[..., Path]) -> None:
    first, second = Recorder(), Recorder()
    config = config_of(photo_folder(classes=8))
    assert config.train.batch_size == 4
    report = hgsl.train(config, callbacks=[first, second])
    lines = read_metrics(Path("runs/folder/metrics.jsonl"))  # without run.dir, after the name of the data set
    per_epoch = len(lines) // 2
    steps = [(line["step"], line["loss"]) for line in lines]
    epochs = []
    for number in (1, 2):
        part = lines[(number - 1) * per_epoch : number * per_epoch]
        mean = pytest.approx(sum(line["loss"] for line in part) / per_epoch)
        epochs.append((f"epoch {number}", mean, part[-1]["val/map@r"]))
    assert first.moments == [*steps[:per_epoch], epochs[0], *steps[per_epoch:], epochs[1], report]
    assert second.moments == first.moments
    assert json.loads(Path("runs/folder/report.json").read_text())["after"] == report["after"]


def test_an_error_in_a_callback_ends_the_run_with_its_state_saved(photo_folder: Callable[..., Path]) -> None:
    config = config_of(photo_folder(classes=8))
    expected = hgsl.train(config, "whole")["after"]
    with pytest.raises(KeyError, match="disk of the callback") as error:
        hgsl.train(config, "out", callbacks=[Recorder(fails_after=3)])
    assert error.value.__notes__ == [
        "Recorder.on_step 3 ended the training; its state is saved, and resume=True (--resume) continues it"
    ]
    assert load_state(Path("out/state.safetensors"))["train"]["step"] == 3
    assert hgsl.train(config, "out", resume=True)["after"] == expected
    assert Path("out/model.safetensors").read_bytes() == Path("whole/model.safetensors").read_bytes()


def test_a_training_may_run_in_a_thread_which_no_signal_can_reach() -> None:
    def number_in_context() -> int | None:
        with StopRequest() as stop:
            return stop.number

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(number_in_context).result() is None


def test_what_is_no_callback_is_refused_before_anything_is_read() -> None:
    with pytest.raises(hgsl.InputError, match=r"expected objects of a subclass of hgsl\.Callback, found function"):
        hgsl.train(Config(), "out", callbacks=[lambda step: None])  # type: ignore[list-item]
    with pytest.raises(hgsl.InputError, match=r"expected settings such as hgsl\.load_config returns, found dict"):
        hgsl.train({"train": {"epochs": 1}}, "out")  # type: ignore[arg-type]
    assert not Path("out").exists()


def test_what_are_no_settings_is_refused() -> None:
    with pytest.raises(
        hgsl.InputError, match=r"config: expected settings such as hgsl\.load_config returns, found dict"
    ):
        hgsl.train({"train": {}}, "out")  # type: ignore[arg-type]
    with pytest.raises(hgsl.InputError, match="3 is no config file: give paths or names, and values as settings="):
        hgsl.load_config(3)  # type: ignore[arg-type]
    with pytest.raises(hgsl.InputError, match=r"settings is 'train\.epochs': expected dotted names with values"):
        hgsl.load_config("folder", settings="train.epochs")  # type: ignore[arg-type]


def test_a_failure_in_the_first_process_is_one_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hgsl.engine.callbacks.ranks.is_main", lambda: False)
    monkeypatch.setattr("hgsl.engine.callbacks.ranks.all_gather_object", lambda value: [True, value])
    assert "first process failed" in str(call_callbacks([Recorder()], [(1, {"loss": 1.0})], None, {}))
    monkeypatch.setattr("hgsl.engine.callbacks.ranks.all_gather_object", lambda value: [False, value])
    assert call_callbacks([Recorder()], [(1, {"loss": 1.0})], None, {}) is None


def test_settings_of_a_recipe_and_single_values(photo_folder: Callable[..., Path]) -> None:
    root = photo_folder()
    config = hgsl.load_config("folder", settings={"data.root": root, "loss.top_k": None, "eval.ks": [1, 3]})
    assert (config.data.root, config.loss.top_k, config.eval.ks) == (str(root), None, [1, 3])
    with pytest.raises(hgsl.InputError, match=r"did you mean '--train\.epochs'"):
        hgsl.load_config("folder", settings={"data.root": root, "train.epoch": 3})
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        hgsl.load_config("folder", settings={"data.root": "nowhere"})
