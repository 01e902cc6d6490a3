"""Transforms against those of torchvision, value by value, and their bounds on shape and memory."""

from typing import Any

import numpy as np
import pytest
import torch
import torchvision.transforms as tv
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import v2

from hgsl.common.errors import InputError
from hgsl.common.images import to_pixels
from hgsl.common.transforms import ShortestSide, eval_transform, train_transform

CONFIG: dict[str, Any] = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.25, 0.3), "interpolation": "bilinear"}


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def plain(*steps: Any) -> Any:
    return tv.Compose([*steps, tv.ToTensor(), tv.Normalize(CONFIG["mean"], CONFIG["std"])])


def assert_close_to_a_level(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Pillow and PyTorch round a resized pixel that is half-way between two of 255 levels differently."""
    levels = (found - expected) * torch.tensor(CONFIG["std"]).view(3, 1, 1) * 255
    assert levels.abs().max() < 1.001
    assert abs(levels.mean()) < 0.3


@pytest.mark.parametrize("size", [(90, 60), (60, 91), (48, 48), (20, 30)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_eval_is_torchvisions_resize_and_center_crop(size: tuple[int, int], interpolation: str) -> None:
    mode = tv.InterpolationMode(interpolation)
    for crop_pct, resized in ((1.0, 48), (0.75, 64)):
        expected = plain(tv.Resize(resized, mode), tv.CenterCrop(48))(photo(*size))
        found = eval_transform(CONFIG | {"interpolation": interpolation}, 48, crop_pct=crop_pct)(photo(*size))
        assert found.dtype == torch.float32
        assert found.is_contiguous()
        assert_close_to_a_level(found, expected)


@pytest.mark.parametrize("recipe", ["resize_random_crop", "random_resized_crop"])
@pytest.mark.parametrize("flip", [True, False])
def test_train_draws_what_torchvision_draws(recipe: str, flip: bool) -> None:
    mode = tv.InterpolationMode("bilinear")
    crop = [tv.Resize(32, mode), v2.RandomCrop(32)]
    if recipe == "random_resized_crop":
        crop = [tv.RandomResizedCrop(32, (0.25, 1.0), interpolation=mode)]  # photos of 64 pixels stay as they are
    expected = plain(*crop, *([v2.RandomHorizontalFlip()] if flip else []))
    found = train_transform(CONFIG, 32, recipe, flip=flip)
    for seed in range(20):
        image = photo(64, 80, seed)
        torch.manual_seed(seed)
        wanted = expected(image)
        torch.manual_seed(seed)
        assert_close_to_a_level(found(image), wanted)


@given(st.integers(1, 300), st.integers(1, 300), st.integers(2, 64), st.integers(0, 80))
def test_resizing_twice_is_resizing_once(width: int, height: int, side: int, leave: int) -> None:
    resize = ShortestSide(side, "bilinear", leave)
    image = to_pixels(Image.new("RGB", (width, height)))
    short = min(width, height)
    if max(width, height) > 100 * short:
        with pytest.raises(
            InputError, match=f"of its {width} x {height} pixels, one side is more than 100 times the other"
        ):
            resize(image)
        return
    pixels = resize(image)
    assert torch.equal(resize(pixels), pixels)
    width, height = min(width, 8 * short), min(height, 8 * short)
    if short <= leave:
        assert pixels.shape == (3, height, width)
    else:
        assert pixels.shape == (3, height * side // short, width * side // short)


def test_of_a_strip_only_the_center_is_resized() -> None:
    """The evaluation of a strip is that of its center, and the memory of either resize depends on the side alone."""
    pixels = to_pixels(photo(5_000, 50))
    center = pixels[:, :, 2300:2700]  # 8 times as long as wide
    transform = eval_transform(CONFIG, 32)
    assert torch.equal(transform(pixels), transform(center))
    for recipe in ("resize_random_crop", "random_resized_crop"):
        train = train_transform(CONFIG, 32, recipe)
        torch.manual_seed(0)
        found = train(pixels.mT)
        torch.manual_seed(0)
        assert torch.equal(found, train(center.mT))


@pytest.mark.parametrize("size", [(20_000, 200), (200, 20_000), (100, 1), (9_000, 1_000), (640, 480)])
@pytest.mark.parametrize("side", [16, 64])
def test_the_memory_of_a_resize_is_bounded(size: tuple[int, int], side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    resized = []
    resize = v2.functional.resize

    def record(pixels: torch.Tensor, shape: list[int], *arguments: Any, **options: Any) -> torch.Tensor:
        resized.append(shape[0] * shape[1])
        return resize(pixels, shape, *arguments, **options)

    monkeypatch.setattr(v2.functional, "resize", record)
    pixels = torch.zeros((3, *size), dtype=torch.uint8)
    assert eval_transform(CONFIG, side)(pixels).shape == (3, side, side)
    assert train_transform(CONFIG, side, "resize_random_crop")(pixels).shape == (3, side, side)
    assert len(resized) == 2
    assert max(resized) <= 8 * side * side


def test_an_image_and_its_pixels_are_the_same() -> None:
    transform = eval_transform(CONFIG, 24)
    assert torch.equal(transform(photo(70, 50)), transform(to_pixels(photo(70, 50))))


def test_the_smallest_crop_is_not_enlarged() -> None:
    transform = train_transform(CONFIG, 100, "random_resized_crop", scale=(0.16, 1.0))
    assert transform.resize == ShortestSide(250, "bilinear", leave=312)


@pytest.mark.parametrize("mode", ["L", "I;16", "F", "RGBA", "P"])
def test_only_rgb_images_are_taken(mode: str) -> None:
    with pytest.raises(InputError, match=f"an image of mode {mode!r} is not RGB"):
        eval_transform(CONFIG, 8)(Image.new(mode, (9, 9)))


@pytest.mark.parametrize(
    ("image", "description"),
    [
        (torch.rand(3, 9, 9), r"a torch\.float32 tensor of shape \(3, 9, 9\)"),  # its values would be divided by 255
        (torch.zeros(1, 9, 9, dtype=torch.uint8), r"a torch\.uint8 tensor of shape \(1, 9, 9\)"),
        ("photo.jpg", "of type str"),
    ],
)
def test_other_tensors_and_paths_are_refused(image: object, description: str) -> None:
    with pytest.raises(InputError, match=f"image is {description}: expected a PIL image"):
        eval_transform(CONFIG, 8)(image)  # type: ignore[arg-type]


def test_errors_name_the_value() -> None:
    for call, message in (
        (lambda: train_transform(CONFIG, 32, "random_resize_crop"), "unknown augmentation recipe 'random_resize_crop'"),
        (lambda: train_transform(CONFIG, 32, scale=(0.5, 0.2)), r"scale \(0.5, 0.2\) must be"),
        (lambda: eval_transform(CONFIG, 0), "image_size 0"),
        (lambda: eval_transform(CONFIG, 32, crop_pct=1.2), "crop_pct 1.2"),
        (lambda: eval_transform(CONFIG | {"interpolation": "bicubik"}, 32), "did you mean 'bicubic'"),
    ):
        with pytest.raises(InputError, match=message):
            call()
