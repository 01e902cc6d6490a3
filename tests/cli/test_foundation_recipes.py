"""Recipes of pretrained transformers: a recipe, a backbone and a mode, as config files given one after another."""

from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch

from hgsl import load_embedder
from hgsl.cli import train
from hgsl.cli._settings import CONFIGS, build_parser, parse
from hgsl.common.files import read_json
from hgsl.config import Config
from hgsl.engine.folder.logging import read_metrics
from hgsl.models.features import default_pooling
from tests.cli.test_recipes import MAKERS
from tests.helpers import TINY, fails

BACKBONES = sorted(path.stem for path in (CONFIGS / "backbones").glob("*.yaml"))
MODES = ("frozen", "head", "lora", "full")
BASES = ("folder", "cub_vit_small", "cars_vit_small", "aircraft_vit_small", "flowers_vit_small")
SLOW = pytest.mark.slow
WORDS = [
    *(*TINY, "--model.backbone", "test_vit", "--data.cache", "none", "--data.options", "{}", "--eval.page", "false"),
    *("--train.batch_size", "16", "--loss.top_k", "2"),
]


def words_of(base: str, backbone: str, mode: str) -> list[str]:
    return ["--config", base, "--config", f"backbones/{backbone}", "--config", f"modes/{mode}"]


def read(*words: str) -> Config:
    return parse(build_parser("test"), list(words))[0]


def test_there_are_small_and_base_networks_of_four_families() -> None:
    assert (
        sorted(f"{family}_{size}" for family in ("dinov2", "dinov3", "clip", "siglip") for size in ("small", "base"))
        == BACKBONES
    )
    assert sorted(path.stem for path in (CONFIGS / "modes").glob("*.yaml")) == sorted(MODES)


@pytest.mark.parametrize("name", BACKBONES)
def test_a_backbone_is_what_its_file_states(name: str) -> None:
    """Pretrained weights of that name, number of parameters, pooling, features, and a size of whole patches."""
    config = read("--config", f"backbones/{name}")
    assert timm.models.is_model_pretrained(config.model.backbone)
    with torch.device("meta"):
        model = timm.create_model(config.model.backbone, num_classes=0)
    text = (CONFIGS / "backbones" / f"{name}.yaml").read_text()
    assert f"{sum(p.numel() for p in model.parameters()) / 1e6:.0f} million parameters" in text
    assert f"{model.num_features} features" in text
    pooling = default_pooling(model, config.data.image_size)
    assert (pooling, {"token": "class token", "head": "attention pooling"}[pooling] in text) == (pooling, True)
    assert pooling == ("head" if name.startswith("siglip") else "token")
    patch = model.patch_embed.patch_size[0]
    assert config.data.image_size % patch == 0
    assert f"a multiple of {patch} pixels" in text
    assert config.data.image_size <= 256


@pytest.mark.parametrize("base", [*BASES[:2], *(pytest.param(base, marks=SLOW) for base in BASES[2:])])
def test_every_mode_goes_with_every_recipe(base: str) -> None:
    alone = read("--config", base)
    for mode in MODES:
        config = read(*words_of(base, "dinov2_base", mode))
        assert (config.data.name, config.loss) == (alone.data.name, alone.loss)
        assert config.model.backbone == "vit_base_patch14_reg4_dinov2.lvd142m"
        assert config.model.pooling == "auto"
        assert (config.data.image_size, config.eval.image_size) == (224, None)  # whole patches, also in the test
        assert config.model.freeze_depth == 0
        assert (config.model.lora.rank > 0) == (mode == "lora")
        assert (config.train.mode == "head") == (mode == "head")
        assert config.optim.layer_decay == (0.75 if mode == "full" else None)
        assert (config.train.epochs == 0) == (mode == "frozen")
        assert config.train.epochs == alone.train.epochs or mode in ("frozen", "head")


@pytest.mark.parametrize("mode", MODES)
def test_a_mode_trains(
    mode: str, photo_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if mode == "lora":
        pytest.importorskip("peft", reason="peft is not installed: pip install 'hgsl[lora]'")
    photo_folder()
    monkeypatch.chdir(tmp_path)
    epochs = [] if mode == "frozen" else ["--train.epochs", "1"]
    assert train.main([*words_of("folder", "dinov3_small", mode), *WORDS, *epochs, "--data.root", "photos"]) == 0
    run = Path(f"runs/folder-dinov3_small-{mode}")  # the names of the files, side by side
    report = read_json(run / "report.json")
    assert bool(report["before"]) == (mode != "frozen")
    assert report["after"]["recall@1"] > 0.5
    assert len(read_metrics(run / "metrics.jsonl")) == (mode != "frozen")
    model = load_embedder(run)
    assert model.embedding_size == (512 if mode == "head" else 64)
    assert not any("lora" in name for name in model.state_dict())


@SLOW
@pytest.mark.parametrize("base", BASES[1:])
def test_data_sets_train_with_adapters(base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("peft", reason="peft is not installed: pip install 'hgsl[lora]'")
    monkeypatch.chdir(tmp_path)
    name = base.split("_")[0]
    (tmp_path / name).mkdir()
    MAKERS[name](tmp_path / name)
    words = [*words_of(base, "siglip_small", "lora"), *WORDS, "--train.epochs", "1", "--data.root", name]
    assert train.main([*words, "--run.dir", "out"]) == 0
    assert load_embedder("out").embedding_size == 512


@SLOW
@pytest.mark.parametrize("name", BACKBONES)
def test_networks_embed_small_images_with_random_weights(
    name: str, photo_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo_folder()
    monkeypatch.chdir(tmp_path)
    config = read("--config", f"backbones/{name}")
    patch = int(config.model.backbone.split("patch")[1][:2])
    words = [*words_of("folder", name, "frozen"), *WORDS, "--model.backbone", config.model.backbone]
    words += ["--data.image_size", str(2 * patch), "--data.root", "photos", "--run.dir", "out"]
    assert train.main(words) == 0
    assert load_embedder("out").data_config["image_size"] == 2 * patch


def test_a_mistyped_name_in_a_folder(capsys: pytest.CaptureFixture[str]) -> None:
    for name, hint in (("modes/lorra", "modes/lora"), ("dinov2_small", "backbones/dinov2_small")):
        assert f"did you mean --config {hint}?" in fails(train.main, ["--config", name], capsys)
