"""Backbones of a folder or of the Hub: weights, preprocessing and options as stored, and independence after saving."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models import save_for_hf

from hgsl import create_embedder, load_embedder
from hgsl.cli import train
from hgsl.common.errors import InputError
from hgsl.models import save_embedder, save_pretrained
from tests.helpers import SMALL, fails

MEAN = (0.1, 0.2, 0.3)


def write_model(folder: Path, name: str = "test_vit", **arguments: Any) -> torch.nn.Module:
    """Saves a model with a classifier, as timm does, and returns it."""
    torch.manual_seed(1)
    model = timm.create_model(name, num_classes=5, **arguments)
    save_for_hf(model, folder, model_args=arguments, safe_serialization=True)
    path = folder / "config.json"
    content = json.loads(path.read_text())
    content["pretrained_cfg"] |= {"mean": MEAN, "crop_mode": "squash"}
    path.write_text(json.dumps(content))
    return model.eval()


def test_a_folder_gives_weights_preprocessing_and_options(tmp_path: Path) -> None:
    original = write_model(tmp_path / "vit", init_values=0.5)  # with layer scale, unlike test_vit
    model = create_embedder(f"local-dir:{tmp_path / 'vit'}", image_size=48).eval()
    assert model.architecture["backbone"] == "test_vit"
    assert model.architecture["pooling"] == "token"
    assert tuple(model.data_config["mean"]) == MEAN
    assert model.data_config["crop_mode"] == "squash"
    assert model.backbone.state_dict()["blocks.0.ls1.gamma"].eq(0.5).all()
    images = torch.randn(2, 3, 160, 160)
    with torch.inference_mode():
        assert torch.equal(model.pooled(images), original.forward_features(images)[:, 0])
    shutil.rmtree(tmp_path / "vit")
    for save, name in ((save_embedder, "run"), (save_pretrained, "hub")):
        save(model, tmp_path / name)
        loaded = load_embedder(tmp_path / name)
        assert tuple(loaded.data_config["mean"]) == MEAN
        with torch.inference_mode():
            assert torch.equal(loaded(images), model(images))


def test_stored_weights_in_a_pytorch_file(tmp_path: Path) -> None:
    original = write_model(tmp_path, "test_resnet")
    torch.save(original.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    model = create_embedder(f"local-dir:{tmp_path}", "head").eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(model.pooled(images), original.forward_head(original.forward_features(images), True))
    (tmp_path / "pytorch_model.bin").unlink()
    with pytest.raises(InputError, match=r"no weights in .*: expected model\.safetensors or pytorch_model\.bin"):
        create_embedder(f"local-dir:{tmp_path}")
    create_embedder(f"local-dir:{tmp_path}", weights="none")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": None}, "names no architecture of timm: it is a model of another library"),
        ({"architecture": "bert_base"}, "is of architecture 'bert_base', which timm .* does not have"),
        ({"model_args": {"checkpoint_path": "/etc/passwd"}}, "model_args has checkpoint_path: .* no option"),
        ({"model_args": {"in_chans": 1}}, "model_args has in_chans: 1, which is no option"),
        ({"model_args": {"depth": {"a": 1}}}, "model_args has depth: "),
        ({"model_args": {"wings": 2}}, "does not take its options {'wings': 2}"),
        ({"model_args": [1]}, r"model_args is \[1\], expected an object"),
    ],
)
def test_a_config_that_builds_no_backbone(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    write_model(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(InputError, match=message):
        create_embedder(f"local-dir:{tmp_path}")


def test_wrong_names_are_reported_before_torch_is_imported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, message in (
        ("hf-hub:birds", "expected hf-hub:OWNER/NAME"),
        ("hub:me/birds", "is neither a model name of timm, nor hf-hub:OWNER/NAME, nor local-dir:FOLDER"),
        (f"local-dir:{tmp_path}", "config.json does not exist"),
    ):
        words = [*SMALL, "--data.root", str(tmp_path), "--model.backbone", name]
        assert message in fails(train.main, words, capsys)
