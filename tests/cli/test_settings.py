from pathlib import Path

import pytest
import yaml

from hgsl.cli._settings import CONFIGS, build_parser, parse, parse_as
from hgsl.common.errors import InputError
from hgsl.config import Config, SparsifyRunConfig


def read(*words: str) -> Config:
    return parse(build_parser("test"), words)[0]


def test_defaults_file_and_overrides_in_that_order(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("train: {epochs: 3, batch_size: 8}\nloss: {alpha: 0.4}\n")
    config = read("--config", str(path), "--train.epochs", "5")
    assert (config.train.epochs, config.train.batch_size, config.loss.alpha) == (5, 8, 0.4)
    assert config.optim == Config().optim


def test_written_settings_read_back_the_same(tmp_path: Path) -> None:
    config = read("--data.crop_scale", "[0.2, 0.9]", "--eval.ks", "[1, 10]", "--data.options.num_classes", "7")
    assert config.data.options == {"num_classes": 7}
    path = tmp_path / "config.yaml"
    path.write_text(config.to_yaml())
    assert read("--config", str(path)) == config


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_configs_are_valid(path: Path) -> None:
    settings = SparsifyRunConfig if path.stem.endswith("_cs") else Config
    parse_as(settings, build_parser("test", settings), ["--config", str(path)])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--train.epoch", "3"], "unknown flag '--train.epoch': did you mean '--train.epochs'?"),
        (["--modle.backbone=x"], "did you mean '--model.backbone'"),
        (["--device", "cpu"], "unknown flag '--device': did you mean '--run.device'?"),
        (["--name=x"], "did you mean '--data.name' or '--loss.name' or '--optim.name'?"),
        (["--train.epochs", "many"], "train.epochs.*int.*many"),
        (["--optim.name", "adam"], "optim.name.*adamw.*sgd.*adam"),
        (["--model.weights", "packaged", "--model.backbone", "resnet18"], "change one of the two"),
        (["--optim.momentum", "0.9"], "momentum belongs to sgd"),
        (["--optim.schedule", "step"], r"needs optim.step_epochs, such as \[10, 20\]"),
        (["--optim.step_epochs", "[3]"], "choose 'step' or leave them out"),
        (["--train.batch_size", "10", "--train.accumulate", "3"], "not a multiple of train.accumulate"),
        (["--loss.hard_set", "negatives"], "needs loss.top_k"),
        (["--loss.name", "ProxyAnchorLoss", "--loss.sharded", "true"], "loss.sharded belongs to HardGlobalSoftminLoss"),
        (["--loss.name", "NCALoss", "--loss.top_k_schedule", "{0: 2}"], "loss.top_k_schedule belongs to HardGlobal"),
        (["--loss.name", "NCALoss", "--loss.memory", "8"], "loss.memory 8 is less than the 32 images"),
        (["--optim.layer_decay", "0"], "optim.layer_decay must be above 0 and at most 1"),
        (["--optim.layer_decay", "-1"], "optim.layer_decay must be above 0 and at most 1"),
        (["--optim.step_factor", "-1"], "optim.step_factor must be above 0 and at most 1"),
        (["--run.seed", str(2**70)], "run.seed must lie from 0 to 4294967295"),
        (["--run.seed", "-1"], "run.seed must lie from 0 to 4294967295"),
        (["--train.epochs", "0", "--train.select", "best", "--data.val_share", "0.3"], "no epoch to choose from"),
        (["--loss.alpha", "0"], "loss.alpha must be positive"),
        (["--data.crop_scale", "[0.9, 0.1]"], "0 < low <= high <= 1"),
        (["--eval.ks", "[0]"], "eval.ks must be positive"),
    ],
)
def test_a_wrong_setting_is_one_line_with_a_way_out(words: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read(*words)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: {epoch: 3}", "unknown key in .*bad.yaml: 'train.epoch': did you mean 'train.epochs'?"),
        ("optimizer: {lr: 1}", "did you mean 'optim'"),
        ("train: [", "not valid YAML"),
        ("- 1", "must hold settings"),
    ],
)
def test_a_wrong_file_is_one_line_with_a_way_out(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        read("--config", str(path))
    assert "\n" not in str(caught.value)


def test_a_missing_file_names_a_shipped_one() -> None:
    with pytest.raises(FileNotFoundError, match=r"did you mean configs/folder\.yaml"):
        read("--config", "configs/foldr.yaml")


def test_help_explains_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        read("--help")
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for setting in ("--data.test_share", "--loss.hard_set", "--optim.scale_lr", "--eval.ks"):
        assert setting in text
    assert "Size K of the hard set" in text
    assert text.count("None (") == 0


def test_print_config_is_a_config(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        read("--train.epochs", "2", "--print_config")
    assert yaml.safe_load(capsys.readouterr().out)["train"]["epochs"] == 2
