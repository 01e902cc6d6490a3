"""The embedder: output, image sizes, transform and refusals."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from hgsl import create_embedder
from hgsl.common.errors import InputError
from hgsl.common.transforms import eval_transform, train_transform
from hgsl.models import POOLINGS, load_embedder, save_embedder, save_pretrained
from hgsl.models.features import spatial_features

SWIN = pytest.param("swin_tiny_patch4_window7_224", marks=pytest.mark.slow)
BACKBONES = ["test_resnet", "test_efficientnet", "test_convnext", "test_vit", SWIN]


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("pooling", [name for name in POOLINGS if "token" not in name])
def test_unit_norm_and_size(backbone: str, pooling: str) -> None:
    model = create_embedder(backbone, pooling, weights="none").eval()
    size = model.data_config["input_size"][-1]
    with torch.inference_mode():
        embeddings = model(torch.randn(2, 3, size, size))
    assert embeddings.shape == (2, model.embedding_size)
    assert embeddings.dtype == torch.float32
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(2))
    assert model.embedding_size == model.backbone.num_features * (2 if pooling in ("maxavg", "scda") else 1)


def test_projection_sets_the_size() -> None:
    model = create_embedder("test_resnet", "gem", embedding_size=24, weights="none")
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 24)


def test_output_is_float32_under_autocast() -> None:
    model = create_embedder("test_vit", weights="none")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        embeddings = model(torch.randn(1, 3, 32, 32))
    assert embeddings.dtype == torch.float32
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(1))


def test_maxavg_is_max_then_average() -> None:
    features = torch.tensor([[[[1.0, 2.0], [3.0, 6.0]]]])
    assert POOLINGS["maxavg"]()(features).tolist() == [[6.0, 3.0]]


def test_gem_lies_between_average_and_maximum() -> None:
    features = torch.rand(2, 5, 3, 4)
    gem = POOLINGS["gem"]()
    expected = features.pow(3).mean(dim=(2, 3)).pow(1 / 3)
    torch.testing.assert_close(gem(features), expected)
    gem.p.data.fill_(1.0)
    torch.testing.assert_close(gem(features), features.mean(dim=(2, 3)))
    gem(features).sum().backward()
    assert gem.p.grad.abs() > 0


def test_class_token_is_not_pooled() -> None:
    model = create_embedder("test_vit", "avg", weights="none").eval()
    images = torch.randn(1, 3, 160, 160)
    with torch.inference_mode():
        tokens = model.backbone.forward_features(images)
        torch.testing.assert_close(model.pooled(images), tokens[:, 1:].mean(dim=1))


def test_channels_last_features_are_permuted() -> None:
    class Net(nn.Module):
        output_fmt = "NHWC"

        def forward_features(self, images: torch.Tensor) -> torch.Tensor:
            return torch.zeros(2, 4, 5, 7)  # B, h, w, C

    assert spatial_features(Net(), torch.zeros(2, 3, 8, 8)).shape == (2, 7, 4, 5)


def test_transformers_take_other_sizes() -> None:
    model = create_embedder("test_vit", weights="none")
    assert model(torch.randn(1, 3, 96, 64)).shape == (1, 64)


def test_output_stride_makes_the_last_map_finer() -> None:
    images = torch.zeros(1, 3, 128, 128)
    coarse = create_embedder("resnet18", weights="none").eval()
    fine = create_embedder("resnet18", weights="none", output_stride=16).eval()
    assert spatial_features(coarse.backbone, images).shape[-2:] == (4, 4)
    assert spatial_features(fine.backbone, images).shape[-2:] == (8, 8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backbone": "resnet_50"}, "did you mean 'resnet50'"),
        ({"backbone": "test_resnet", "pooling": "maxagv"}, "did you mean 'maxavg'"),
        ({"backbone": "test_resnet", "embedding_size": 0}, "embedding_size must be a positive integer"),
        ({"backbone": "test_vit", "output_stride": 16}, "does not take output_stride 16"),
        (
            {"backbone": "test_resnet", "weights": "packaged"},
            "those of tf_efficientnet_lite0, .*, not of 'test_resnet'",
        ),
        ({"backbone": "test_resnet", "image_size": 0}, "image_size must be 1 to 4096 pixels, found 0"),
        ({"backbone": "test_vit", "image_size": 50}, r"does not take images of 50 pixels .* to 48 or 64, the nearest"),
        ({"backbone": "test_convnext", "image_size": 8}, "does not take images of 8 pixels"),
    ],
)
def test_bad_arguments(arguments: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        create_embedder(**{"weights": "none", **arguments})


def test_images_too_small_for_the_backbone_are_refused() -> None:
    arguments = {"backbone": "tf_efficientnet_lite0", "weights": "packaged"}
    with pytest.raises(InputError, match=r"images of 8 pixels are too small .* all zero: set image_size .* 32 or more"):
        create_embedder(**arguments, image_size=8)
    assert create_embedder(**arguments, image_size=32).training


def test_a_batch_of_one_in_training_mode() -> None:
    model = create_embedder("test_resnet", weights="none")
    assert model(torch.randn(1, 3, 64, 64)).shape == (1, model.embedding_size)  # four values per channel
    with pytest.raises(InputError, match=r"batch of one image of 32 pixels .* larger batches or images, or model.eval"):
        model(torch.randn(1, 3, 32, 32))
    assert model.eval()(torch.randn(1, 3, 32, 32)).shape == (1, model.embedding_size)
    assert create_embedder("test_vit", weights="none")(torch.randn(1, 3, 32, 32)).shape == (1, 64)  # no batch norm


def test_one_image_in_a_batch_does_not_change_another() -> None:
    model = create_embedder("test_efficientnet", weights="none").eval()
    images = torch.randn(3, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(model(images)[1:2], model(images[1:2]), atol=1e-6, rtol=1e-5)


def test_the_transform_follows_the_data_config() -> None:
    model = create_embedder("tf_efficientnet_lite0", weights="none", image_size=40)
    model.data_config["crop_pct"] = 0.5
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8))
    assert torch.equal(model.transform()(image), eval_transform(model.data_config, 40, crop_pct=0.5)(image))
    assert model.transform(image_size=56)(image).shape == (3, 56, 56)
    torch.manual_seed(3)
    augmented = model.transform(train=True)(image)
    torch.manual_seed(3)
    assert torch.equal(augmented, train_transform(model.data_config, 40)(image))
    assert create_embedder("test_vit", weights="none").data_config["image_size"] == 160  # of its pretraining


def test_data_config_comes_from_the_backbone() -> None:
    model = create_embedder("tf_efficientnet_lite0", weights="none")
    assert model.data_config["mean"] == timm.get_pretrained_cfg("tf_efficientnet_lite0").mean == (0.5, 0.5, 0.5)


def test_arguments_of_another_type_are_named(tmp_path: Path) -> None:
    for save in (save_pretrained, save_embedder):
        with pytest.raises(InputError, match="model is of type Linear: expected the Embedder"):
            save(nn.Linear(2, 2), tmp_path / "new")  # type: ignore[arg-type]
    assert not (tmp_path / "new").exists()
    with pytest.raises(InputError, match="source is 3: expected a run folder, or OWNER/NAME"):
        load_embedder(3)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="image is of type str: expected a PIL image"):
        create_embedder("test_resnet", weights="none").transform()("x.jpg")  # type: ignore[arg-type]


def test_the_memory_format_depends_on_the_device() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    for name, on_cpu, on_gpu in (
        ("test_resnet", True, True),
        ("test_efficientnet", True, False),
        ("test_vit", False, False),
    ):
        model = create_embedder(name, weights="none")
        assert (model.prefers_channels_last(cpu), model.prefers_channels_last(gpu)) == (on_cpu, on_gpu)


class Clones(TorchDispatchMode):
    """Counts the copies that autograd makes of inputs which are overwritten."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten.clone.default
        return func(*args, **(kwargs or {}))


def test_activations_work_in_place_in_evaluation_only() -> None:
    model, images = create_embedder("tf_efficientnet_lite0", weights="none"), torch.randn(2, 3, 64, 64)
    plain = timm.create_model("tf_efficientnet_lite0", num_classes=0, global_pool="")
    plain.load_state_dict(model.backbone.state_dict())
    activations = [(ours, theirs) for ours, theirs in zip(model.backbone.modules(), plain.modules(), strict=True)]
    activations = [pair for pair in activations if isinstance(pair[0], nn.ReLU6)]
    assert len(activations) > 30
    for network in (model, copy.deepcopy(model)):
        copied = [module for module in network.modules() if isinstance(module, nn.ReLU6)]
        with Clones() as clones:
            output = network.backbone.forward_features(images)
        assert clones.count == 0
        assert not any(module.inplace for module in copied)
        torch.testing.assert_close(output, plain.forward_features(images), rtol=0, atol=0)
        network.eval()
        assert [module.inplace for module in copied] == [theirs.inplace for _, theirs in activations]
        assert not any(module.inplace for module in network.train().modules() if isinstance(module, nn.ReLU6))
