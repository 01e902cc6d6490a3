"""Settings on the command line: files, overrides, messages about mistakes."""

import dataclasses
import importlib
import math
import re
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import pytest
import yaml

from hgsl.cli._config_files import check_file
from hgsl.cli._names import TABLES, names_in
from hgsl.cli._settings import CONFIGS, build_parser, parse, parse_as, setting_names
from hgsl.cli._training import training_parser
from hgsl.cli._unused import check_used
from hgsl.common.errors import InputError
from hgsl.config import Config, EvalConfig, LossConfig, SparsifyConfig, SparsifyRunConfig


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
def test_packaged_recipes_are_valid(path: Path) -> None:
    settings = SparsifyRunConfig if path.stem.endswith("_cs") else Config
    parse_as(settings, build_parser("test", settings), ["--config", str(path)])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--train.epoch", "3"], "unknown flag '--train.epoch': did you mean '--train.epochs'?"),
        (["--modle.backbone=x"], "did you mean '--model.backbone'"),
        (["--device", "cpu"], "unknown flag '--device': did you mean '--run.device'?"),
        (["--name=x"], "did you mean '--data.name' or '--loss.name' or '--optim.name'?"),
        (["--train.epochs", "many"], "train.epochs: expected a whole number, found 'many'"),
        (["--optim.name", "adamww"], "unknown optim.name 'adamww': did you mean 'adamw'"),
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
        (["--loss.margin", "-1"], "loss.margin cannot be negative"),
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
        ("train: 5", r"train holds settings such as {accumulate: ...}, found 5"),
        ("- 1", "must hold settings"),
        (
            "train: {epochs: 3}\noptim: {lr: 1.0}\ntrain: {batch_size: 9}",
            "'train' is given twice, in line 1 and in line 3",
        ),
        ("train:\n  epochs: 3\n  epochs: 9", "'epochs' is given twice"),
        ("data: {options: {seed: 1, seed: 2}}", "'seed' is given twice"),
        ("train.epochs: 3\ntrain: {epochs: 9}", "train.epochs is given twice"),
        ("train: {epochs: null}", "train.epochs is empty: expected a whole number, or leave the key out"),
        ("train:\noptim: {lr: 1.0}", r"train holds settings such as {accumulate: ...}, found nothing"),
        ("# train: {epochs: 3}", "holds no settings"),
        ("loss: {top_k_schedule: {a: 5}}", "^loss.top_k_schedule: invalid literal"),
    ],
)
def test_a_wrong_file_is_one_line_with_a_way_out(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        read("--config", str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("settings", [Config, SparsifyRunConfig])
def test_a_setting_is_empty_only_where_its_type_allows(settings: type[Config], tmp_path: Path) -> None:
    """An empty value of any other setting would fail later with a traceback, or count as false."""
    known, path = set(setting_names(settings)), tmp_path / "mine.yaml"
    for name in known:
        group, _, leaf = name.rpartition(".")
        owner = settings()
        for part in filter(None, group.split(".")):
            owner = getattr(owner, part)
        path.write_text(f"{name}: null")
        if type(None) in get_args(get_type_hints(type(owner))[leaf]):
            check_file(path, settings, known)
        else:
            with pytest.raises(InputError, match=r"is empty: expected|found nothing"):
                check_file(path, settings, known)


def test_a_missing_file_names_a_packaged_recipe() -> None:
    with pytest.raises(FileNotFoundError, match="did you mean --config folder"):
        read("--config", "configs/foldr.yaml")


@pytest.mark.parametrize("name", ["folder", "folder.yaml", "configs/folder.yaml"])
def test_a_packaged_recipe_is_found_by_name_from_any_folder(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert read("--config", name) == read("--config", str(CONFIGS / "folder.yaml"))
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "folder.yaml").write_text("train: {epochs: 77}")
    assert (read("--config", name).train.epochs == 77) == (name == "configs/folder.yaml")
    with pytest.raises(FileNotFoundError, match=r"no config file elsewhere/folder\.yaml"):
        read("--config", "elsewhere/folder.yaml")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--optim.lr", "fast"], "optim.lr: expected a number, found 'fast'"),
        (["--loss.top_k", "x"], "loss.top_k: expected a whole number or null, found 'x'"),
        (["--eval.before", "maybe"], "eval.before: expected true or false, found 'maybe'"),
        (["--eval.ks", "5"], "eval.ks: expected a list such as [1, 2], found '5'"),
        (["--data.crop_scale", "0.5"], "data.crop_scale: expected two numbers such as [0.2, 1.0], found '0.5'"),
        (["--data.options", "5"], "data.options: expected settings such as {name: value}, found '5'"),
        (["--loss.hard_set", "al"], "loss.hard_set: expected one of all, negatives, found 'al'"),
        (["--sparsify.include", "a"], "sparsify.include: expected a list such as [a, b], found 'a'"),
    ],
)
def test_a_value_of_another_type_names_what_is_expected(words: list[str], message: str) -> None:
    with pytest.raises(InputError) as caught:
        read(*words)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("words", "options", "root"),
    [
        (["--data.name", "csv"], {}, None),
        (["--data.name=csv", "--data.root", "t.csv"], {}, "t.csv"),
        (["--data.name", "csv", "--data.options.encoding", "latin-1"], {"encoding": "latin-1"}, None),
        (["--data.name", "folder"], {"seed": 3}, "photos"),
        (["--data.options.seed", "4"], {"seed": 4}, "photos"),
    ],
)
def test_another_data_set_discards_the_options_of_the_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], options: dict, root: str | None
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("data: {name: folder, root: photos, options: {seed: 3}}")
    config = read("--config", str(path), *words)
    assert (config.data.options, config.data.root and Path(config.data.root).name) == (options, root)
    assert ("note: --data.name csv replaces folder" in capsys.readouterr().out) == (config.data.name == "csv")


@pytest.mark.parametrize("setting", TABLES)
def test_names_read_from_sources_are_those_of_the_tables(setting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, *tables = TABLES[setting]
    expected = [list(getattr(importlib.import_module(module), table)) for table in tables]
    monkeypatch.delitem(sys.modules, module)
    assert [names_in(module, table) for table in tables] == expected


def test_help_explains_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        read("--help")
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for setting in ("--data.test_share", "--loss.hard_set", "--optim.scale_lr", "--eval.ks"):
        assert setting in text
    assert "Size K of the hard set" in text
    assert text.count("None (") == 0


@pytest.mark.parametrize(
    ("settings", "words"),
    [(Config, ["--model.lora.rank", "4"]), (SparsifyRunConfig, ["--sparsify.granularity", "channel"])],
)
def test_print_config_prints_every_setting_as_a_config_file(
    settings: type[Config], words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*words, "--train.epochs", "4", "--eval.ks", "[1, 3]", "--run.dir", "out"]
    with pytest.raises(SystemExit) as caught:
        parse_as(settings, training_parser("", settings), [*words, "--print_config"])
    assert caught.value.code == 0
    path = tmp_path / "mine.yaml"
    path.write_text(capsys.readouterr().out)
    expected, _ = parse_as(settings, training_parser("", settings), words)
    assert parse_as(settings, training_parser("", settings), ["--config", str(path)])[0] == expected
    assert yaml.safe_load(path.read_text())["model"]["lora"]["rank"] == expected.model.lora.rank


def test_print_config_refuses_settings_that_contradict_each_other() -> None:
    with pytest.raises(InputError, match="trains adapters of the backbone"):
        read("--model.lora.rank", "4", "--model.freeze", "backbone", "--print_config")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data.per_class", "2"], "--data.per_class has no effect beside data.sampler random"),
        (["--data.per_class", "2", "--data.sampler", "m_per_class"], None),
        (
            ["--data.crop_scale", "[0.5, 1.0]", "--data.recipe=resize_random_crop"],
            "beside data.recipe resize_random_crop",
        ),
        (["--optim.step_factor", "0.5"], "beside optim.schedule cosine"),
        (["--optim.step_factor", "0.5", "--optim.schedule=step", "--optim.step_epochs=[1]"], None),
        (["--optim.scale_lr", "1e-3", "--loss.learnable_scale", "false"], "beside loss.learnable_scale false"),
        (["--loss.teacher_weight", "2"], "--loss.teacher_weight has no effect beside loss.teacher null"),
        (
            ["--loss.teacher", "resnet18", "--loss.teacher_temperature", "1"],
            "--loss.teacher_temperature has no effect beside loss.teacher_kind embedding",
        ),
        (["--train.mode=head", "--model.embedding_size=8", "--optim.lr", "1e-2"], "--optim.lr has no effect"),
        (["--model.lora.alpha=8"], "--model.lora.alpha has no effect beside model.lora.rank 0"),
        (["--model.lora.alpha=8", "--model.lora.rank=4", "--model.freeze=none"], None),
        (["--train.mode=head", "--model.embedding_size=8", "--data.augment.grayscale=0.1"], "beside train.mode head"),
        (["--model.lora.targets=[qkv]"], "--model.lora.targets has no effect"),
        (["--model.freeze", "backbone", "--optim.lr", "1e-2"], "--optim.lr has no effect beside model.freeze backbone"),
        (["--model.freeze", "stem", "--optim.lr", "1e-2"], None),
        (["--run.device", "cpu", "--run.autotune", "true"], "--run.autotune has no effect beside run.device cpu"),
        (["--sparsify.granularity=weight", "--sparsify.lmbda=0", "--sparsify.penalty=operations"], "sparsify.lmbda 0"),
        (["--loss.name", "NCALoss", "--loss.margin", "0.1"], "--loss.margin has no effect beside loss.name NCALoss"),
        (["--loss.name=NCALoss", "--loss.alpha=1"], "whose arguments are loss.options"),
        (["--loss.name", "NCALoss", "--loss.top_k", "null"], None),
        (["--model.sync_bn", "true"], "--model.sync_bn has no effect beside one process"),
        (["--sparsify.lmbda", "1e-5"], "--sparsify.lmbda has no effect beside sparsify.granularity none"),
        (["--sparsify.lmbda", "1e-5", "--sparsify.granularity", "weight"], None),
        (["--sparsify.lmbda", "1e-8"], None),  # the default
    ],
)
def test_a_setting_without_effect_is_refused_by_name(words: list[str], message: str | None) -> None:
    config = read(*words)
    if message is None:
        check_used(config, words)
    else:
        with pytest.raises(InputError, match=re.escape(message)):
            check_used(config, words)


@pytest.mark.parametrize("words", [["--eval.before", "false"], ["--sparsify.rounds=0", "--sparsify.lmbda", "1"]])
def test_a_search_refuses_settings_of_plain_training_and_of_masks_it_does_not_have(words: list[str]) -> None:
    config, _ = parse_as(SparsifyRunConfig, build_parser("test", SparsifyRunConfig), words)
    with pytest.raises(InputError, match=f"{words[-2]} has no effect beside"):
        check_used(config, words)


@pytest.mark.parametrize(("processes", "is_refused"), [("1", True), ("2", False)])
def test_batch_norm_is_synchronized_among_several_processes_only(
    processes: str, is_refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", processes)
    words = ["--model.sync_bn=true"]
    with pytest.raises(InputError, match="one process") if is_refused else nullcontext():
        check_used(read(*words), words)


def test_a_recipe_may_have_settings_that_a_flag_makes_ineffective(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("optim: {lr: 0.5}\nmodel: {embedding_size: 8, sync_bn: true}")
    words = ["--config", str(path), "--train.mode", "head"]
    check_used(read(*words), words)


def test_a_flag_before_the_config_file_replaces_its_setting() -> None:
    config, _ = parse(build_parser("x"), ["--optim.lr", "0.5", "--config", "folder", "--data.root", "."])
    assert config.optim.lr == 0.5


def test_files_and_names_count_in_their_order_in_either_form(tmp_path: Path) -> None:
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text("data: {name: csv}")
    second.write_text("data: {name: folder, root: photos}")
    for names in (["--data.name", "folder"], ["--data.name=csv", "--data.name", "folder"]):
        config = read(f"--config={first}", "--config", str(second), *names)
        assert Path(config.data.root or "").name == "photos", "the data set of the last file, whose root applies"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_no_number_may_be_nan_or_infinite(value: float) -> None:
    checked = 0
    for section in {SparsifyConfig, *(part.type for part in sections_of(Config))}:
        for name, hint in get_type_hints(section).items():
            if "float" not in str(hint):
                continue
            wrong = [0.5, value] if get_origin(hint) in (list, tuple) else value
            with pytest.raises(ValueError, match=rf"\w\.{name} must be finite, found .*{value}"):
                section(**{name: wrong})
            checked += 1
    assert checked > 35
    with pytest.raises(InputError, match=f"^loss.decorrelation must be finite, found {value}$"):
        read(f"--loss.decorrelation={value}".replace("inf", ".inf").replace("nan", ".nan"))


def test_arguments_for_other_code_may_be_infinite_but_not_nan() -> None:
    assert LossConfig("TripletMarginLoss", miner_options={"cutoff": math.inf}, miner="Miner").miner == "Miner"
    with pytest.raises(ValueError, match=r"loss\.options must be finite, found .*nan"):
        LossConfig("TripletMarginLoss", options={"margins": [0.1, math.nan]})


def test_a_multiple_of_the_image_size_that_overflows_is_refused() -> None:
    with pytest.raises(ValueError, match=r"eval\.image_size must be a number of pixels, or a multiple"):
        EvalConfig(image_size="9" * 400 + "x")


def sections_of(settings: type) -> Iterator[dataclasses.Field[Any]]:
    """The fields of settings that are sections, nested ones included."""
    for part in dataclasses.fields(settings):
        if dataclasses.is_dataclass(part.type):
            yield part
            yield from sections_of(part.type)
