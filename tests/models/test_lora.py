"""Low-rank adapters: what trains, equal outputs after the merge, training, resume and loading without peft."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hgsl import create_embedder, load_embedder
from hgsl.cli import train
from hgsl.common.errors import InputError
from hgsl.models import save_embedder
from hgsl.models.embedder import Embedder
from tests.helpers import ROOT, SMALL, launch_ranks, run_code

pytest.importorskip("peft", reason="peft is not installed: pip install 'hgsl[lora]'")
from hgsl.models.lora import add_lora, merge_lora

WORDS = [
    *(*SMALL, "--model.backbone", "test_vit", "--model.lora.rank", "2", "--model.freeze", "none"),
    *("--train.ema", "0.5", "--train.save_every", "1", "--optim.lr", "0.01"),
]


def adapted(targets: str | list[str] = "auto") -> tuple[Embedder, list[str]]:
    torch.manual_seed(0)
    model = create_embedder("test_vit", embedding_size=8, weights="none", image_size=32)
    names = add_lora(model, 2, 8.0, targets)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.backbone.named_parameters():
            if ".lora_B." in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model.eval(), names


def test_adapters_alone_train_and_start_at_zero() -> None:
    torch.manual_seed(0)
    model = create_embedder("test_vit", weights="none", image_size=32).eval()
    images = torch.randn(2, 3, 32, 32)
    before = model(images).detach()
    names = add_lora(model, 2, 8.0)
    assert torch.equal(model(images), before)
    blocks = len(model.backbone.blocks)
    assert len(names) == 4 * blocks  # qkv, proj and two layers of the MLP
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {f"backbone.{name}.lora_{part}.default.weight" for name in names for part in "AB"}


def test_the_merged_model_has_equal_outputs_and_plain_weights(tmp_path: Path) -> None:
    model, names = adapted()
    images = torch.randn(3, 3, 32, 32)
    merged = merge_lora(model)
    layer, plain = model.backbone.get_submodule(names[0]), merged.backbone.get_submodule(names[0])
    delta = layer.lora_B.default.weight @ layer.lora_A.default.weight * (8.0 / 2)
    torch.testing.assert_close(plain.weight, layer.base_layer.weight + delta)
    with torch.inference_mode():
        torch.testing.assert_close(merged(images), model(images), rtol=1e-4, atol=1e-5)
    reference = create_embedder("test_vit", embedding_size=8, weights="none")
    assert merged.state_dict().keys() == reference.state_dict().keys()
    assert merge_lora(merged) is merged
    save_embedder(merged, tmp_path)
    with torch.inference_mode():
        assert torch.equal(load_embedder(tmp_path)(images), merged(images))


def test_targets() -> None:
    _, names = adapted(["qkv"])
    assert adapted("qkv")[1] == names
    assert names
    assert all(name.endswith(".qkv") for name in names)
    with pytest.raises(InputError, match=r"\['query'\] match none of the .* linear layers"):
        adapted(["query"])
    for alpha in (0.0, math.nan, math.inf):
        with pytest.raises(InputError, match=f"alpha of the adapters must be positive and finite, found {alpha}"):
            add_lora(create_embedder("test_vit", weights="none", image_size=32), 2, alpha)


def test_layers_whose_weights_are_read_past_them_get_no_adapter() -> None:
    model = create_embedder("vit_tiny_patch16_dinov3_qkvb", weights="none", image_size=32)
    names = add_lora(model, 2, 8.0)
    assert names
    assert not any(name.endswith(".qkv") for name in names)  # its weight is used with a bias from elsewhere


@pytest.mark.slow
def test_a_run_resumes_to_the_bit_and_loads_without_peft(
    photo_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [*WORDS, "--data.root", str(photo_folder()), "--train.keep", "9"]
    assert train.main([*words, "--run.dir", "whole"]) == 0
    (tmp_path / "cut").mkdir()
    states = sorted(Path("whole/states").glob("*.safetensors"))
    assert len(states) > 2
    Path("cut/state.safetensors").write_bytes(states[1].read_bytes())
    Path("cut/config.yaml").write_bytes(Path("whole/config.yaml").read_bytes())
    assert train.main([*words, "--run.dir", "cut", "--resume"]) == 0
    assert Path("cut/model.safetensors").read_bytes() == Path("whole/model.safetensors").read_bytes()
    code = "import sys; sys.modules['peft'] = None; import hgsl; print(hgsl.load_embedder(sys.argv[1]).embedding_size)"
    assert int(run_code(code, tmp_path / "whole")) == load_embedder(tmp_path / "whole").embedding_size


@pytest.mark.slow
def test_two_processes(photo_folder: Callable[..., Path], tmp_path: Path) -> None:
    words = [*WORDS, "--data.root", str(photo_folder()), "--run.dir", str(tmp_path / "run")]
    done = launch_ranks(ROOT / "tools" / "train.py", *words, processes=2)
    assert done.returncode == 0, done.stderr
    model = load_embedder(tmp_path / "run")
    assert not any("lora" in name for name in model.state_dict())


def test_settings_that_contradict_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    for words, message in (
        (["--model.freeze", "backbone"], "model.lora trains adapters of the backbone, but model.freeze is 'backbone'"),
        (["--train.mode", "head", "--model.embedding_size", "8"], "train.mode 'head' trains no adapter"),
        (["--model.lora.alpha", "0"], "model.lora.alpha must be positive"),
    ):
        assert train.main(["--config", "folder", "--data.root", ".", "--model.lora.rank", "2", *words]) == 2
        assert message in capsys.readouterr().err
