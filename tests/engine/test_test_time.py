"""Image size, views and whitening of an evaluation, which a training saves with its model."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from hgsl.cli import eval_retrieval, train
from hgsl.config import Config, EvalConfig, SparsifyRunConfig
from hgsl.data import build_dataset
from hgsl.evaluation import embed
from hgsl.models import load_embedder
from tests.helpers import SMALL, fails

Folder = Callable[..., Path]


def trained(root: Path, folder: Path, *words: str) -> dict[str, Any]:
    """The report of a run of one epoch."""
    words = (*SMALL, "--train.epochs", "1", "--data.root", str(root), "--run.dir", str(folder), *words)
    assert train.main(list(words)) == 0
    return json.loads((folder / "report.json").read_text())


def test_training_uses_its_own_size_and_one_view(tmp_path: Path, photo_folder: Folder) -> None:
    """The weights do not depend on the size and the views of the evaluation."""
    root = photo_folder()
    words = ("--eval.image_size", "48", "--eval.flip", "true", "--eval.scales", "[1.0, 1.5]", "--eval.whiten", "mean")
    plain_words = ("--eval.image_size", "null", "--eval.flip", "false", "--eval.whiten", "null")
    trained(root, tmp_path / "plain", *plain_words)
    report = trained(root, tmp_path / "views", *words)
    plain, model = load_embedder(tmp_path / "plain"), load_embedder(tmp_path / "views")
    assert (plain.data_config["image_size"], model.data_config["image_size"]) == (32, 48)
    weights = model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in plain.state_dict().items())
    assert report["after"]["map@r"] > 0

    images = build_dataset("folder", root, split="train", transform=plain.transform(image_size=48), seed=0)
    batch = torch.stack([images[row][0] for row in range(len(images))])
    with torch.no_grad():
        mirrored = [batch, F.interpolate(batch, (72, 72), mode="bilinear")]
        views = [plain(view) for size in mirrored for view in (size, size.flip(-1))]
        mean = F.normalize(sum(views), dim=1).mean(0)
    torch.testing.assert_close(model.whitening.mean, mean, atol=1e-5, rtol=0)


def test_an_evaluation_of_a_run_repeats_its_scores(tmp_path: Path, photo_folder: Folder, capsys: Any) -> None:
    words = ("--eval.image_size", "1.5x", "--eval.flip", "true", "--eval.whiten", "4", "--eval.shrinkage", "0.1")
    report = trained(photo_folder(), tmp_path / "run", *words)
    assert load_embedder(tmp_path / "run").data_config["image_size"] == 64  # 1.5 x 32, to a multiple of 32
    assert load_embedder(tmp_path / "run").embedding_size == 4
    again = ["--checkpoint", str(tmp_path / "run"), "--json", str(tmp_path / "again.json")]
    assert eval_retrieval.main(again) == 0
    scores = json.loads((tmp_path / "again.json").read_text())
    assert scores["map@r"] == report["after"]["map@r"]
    assert scores["notes"] == report["after"]["notes"]
    assert eval_retrieval.main([*again, "--data.image_size", "32", "--eval.flip", "false"]) == 0
    notes = json.loads((tmp_path / "again.json").read_text())["notes"]
    assert notes[-1] == "evaluated with image_size 32 (saved with 64), flip False (saved with True)"


def test_head_mode_embeds_every_view_from_cached_features(
    tmp_path: Path, photo_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = photo_folder()
    head = ("--train.mode", "head", "--model.embedding_size", "8", "--eval.image_size", "48", "--eval.flip", "true")
    report = trained(root, tmp_path / "run", *head, "--eval.whiten", "mean")
    model = load_embedder(tmp_path / "run")
    images = build_dataset("folder", root, split="test", transform=model.transform(), seed=0)
    vectors = embed(model, images).embeddings
    similarity = vectors @ vectors.T
    np.fill_diagonal(similarity, -2)
    recall = np.mean(images.labels[similarity.argmax(1)] == images.labels)
    assert report["after"]["recall@1"] == pytest.approx(recall)


def test_equal_embeddings_are_not_whitened(tmp_path: Path, photo_folder: Folder, capsys: Any) -> None:
    words = ("--optim.lr", "0", "--optim.projection_lr", "0", "--model.embedding_size", "1", "--eval.whiten", "0")
    trained(photo_folder(), tmp_path / "run", *words)
    assert "note: no whitening: " in capsys.readouterr().out
    assert load_embedder(tmp_path / "run").architecture["whitening"] is None


@pytest.mark.parametrize(
    ("image_size", "training", "side"),
    [(None, 160, 160), (200, 160, 200), ("200", 160, 200), ("1.2x", 160, 192), ("1x", 150, 150), ("0.1x", 32, 32)],
)
def test_the_side_of_test_images(image_size: int | str | None, training: int, side: int) -> None:
    assert EvalConfig(image_size=image_size).side(training) == side


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"image_size": 0}, "eval.image_size must be positive or empty, found 0"),
        ({"image_size": "1.2"}, "eval.image_size must be a number of pixels, or a multiple"),
        ({"image_size": "0x"}, "eval.image_size must be a number of pixels, or a multiple"),
        ({"scales": []}, "eval.scales must be one or more different numbers"),
        ({"scales": [1.0, 1.0]}, "eval.scales must be one or more different numbers"),
        ({"whiten": -1}, "eval.whiten must be mean, a number of dimensions"),
        ({"shrinkage": 0.1}, "eval.shrinkage belongs to whitening, but eval.whiten is empty"),
        ({"whiten": 8, "shrinkage": 1.5}, "eval.shrinkage must lie from 0 to 1, found 1.5"),
    ],
)
def test_contradictory_settings_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EvalConfig(**values)


def test_a_search_has_one_view() -> None:
    with pytest.raises(ValueError, match=r"set eval\.flip false, eval\.scales \[1\.0\] and eval\.whiten null"):
        SparsifyRunConfig(eval=EvalConfig(flip=True))
    assert Config(eval=EvalConfig(flip=True)).eval.has_views()


def test_a_scale_that_the_backbone_refuses_is_named(photo_folder: Folder, tmp_path: Path, capsys: Any) -> None:
    words = [*SMALL, "--data.root", str(photo_folder()), "--run.dir", str(tmp_path / "run")]
    vit = ["--model.backbone", "test_vit", "--model.pooling", "avg", "--model.freeze", "none"]
    assert "eval.image_size 50" in fails(train.main, [*words, *vit, "--eval.image_size", "50"], capsys)
    message = fails(train.main, [*words, *vit, "--eval.image_size", "32", "--eval.scales", "[1.3]"], capsys)
    assert "scale 1.3 of 32 pixels" in message
