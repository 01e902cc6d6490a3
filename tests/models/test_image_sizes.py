"""Image sizes: pretrained transformers by their timm names with random weights, and what is refused."""

from pathlib import Path

import pytest
import timm
import torch
from PIL import Image

from hgsl import create_embedder, load_embedder
from hgsl.common.errors import InputError
from hgsl.models import save_embedder

SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("vit_small_patch14_dinov2.lvd142m", 42),
        pytest.param("vit_base_patch14_reg4_dinov2.lvd142m", 56, marks=SLOW),
        pytest.param("vit_small_patch16_dinov3.lvd1689m", 48, marks=SLOW),
        pytest.param("vit_base_patch16_dinov3.lvd1689m", 80, marks=SLOW),
        pytest.param("vit_base_patch32_clip_224.openai", 64, marks=SLOW),
        pytest.param("vit_base_patch16_clip_224.openai", 96, marks=SLOW),
        pytest.param("vit_base_patch16_siglip_224.webli", 48, marks=SLOW),
        pytest.param("levit_128s", 224, marks=SLOW),
        pytest.param("xcit_nano_12_p8_224", 64, marks=SLOW),
        ("pit_ti_224", 96),
        ("gmlp_ti16_224", 64),
        ("test_vit", 48),
    ],
)
def test_round_trip_at_another_size(name: str, side: int, tmp_path: Path) -> None:
    model = create_embedder(name, weights="none", image_size=side).eval()
    images = torch.randn(2, 3, side, side)
    save_embedder(model, tmp_path)
    loaded = load_embedder(tmp_path)
    with torch.inference_mode():
        assert torch.equal(loaded(images), model(images))
    assert loaded.data_config["image_size"] == side
    config = timm.get_pretrained_cfg(name)
    assert (tuple(model.data_config["mean"]), model.data_config["interpolation"], model.data_config["crop_mode"]) == (
        config.mean,
        config.interpolation,
        config.crop_mode,
    )
    assert model.transform()(Image.new("RGB", (90, 60))).shape == (3, side, side)


@pytest.mark.parametrize(
    ("name", "side", "nearest"),
    [
        pytest.param("vit_small_patch14_dinov2", 60, "56 or 70", marks=SLOW),
        pytest.param("vit_small_patch16_dinov3", 10, "16", marks=SLOW),
        ("test_vit", 50, "48 or 64"),
        ("pit_ti_224", 7, "16"),
        pytest.param("levit_128s", 192, "224", marks=SLOW),
    ],
)
def test_a_wrong_size_is_refused_with_the_nearest(name: str, side: int, nearest: str) -> None:
    with pytest.raises(
        InputError, match=rf"'{name}' does not take images of {side} pixels .* to {nearest}, the nearest"
    ):
        create_embedder(name, weights="none", image_size=side)


def test_squashing_keeps_the_edges_of_the_image() -> None:
    model = create_embedder("test_vit", weights="none", image_size=32)
    image = Image.new("RGB", (96, 32))
    image.paste((255, 255, 255), (0, 0, 16, 32))  # a white left edge, outside of the central square
    cropped = model.transform()(image)
    model.data_config |= {"crop_mode": "squash", "crop_pct": 1.0}
    squashed = model.transform()(image)
    assert float(cropped.max()) == pytest.approx(float(cropped.min()), abs=1)
    assert squashed.shape == (3, 32, 32)
    assert bool((squashed[:, :, :4] > squashed[:, :, 16:20]).all())
