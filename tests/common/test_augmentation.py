"""Augmentations by name: off by default, each changes what it names, and all depend on PyTorch's generator alone."""

import random

import numpy as np
import pytest
import torch

from hgsl.common.augmentation import Augmentation
from hgsl.common.errors import InputError
from hgsl.common.transforms import train_transform
from hgsl.config import AugmentConfig, Config, DataConfig

NORMALIZATION = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "interpolation": "bilinear"}
SIDE = 32


def pixels() -> torch.Tensor:
    return torch.randint(0, 256, (3, SIDE, SIDE), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def augmented(image: torch.Tensor, seed: int = 0, **settings: float) -> torch.Tensor:
    """The image after the transform of training, as gray values from 0 to 1; its crop is the whole image."""
    chosen = Augmentation(**settings)  # type: ignore[arg-type]
    transform = train_transform(NORMALIZATION, SIDE, flip=False, augmentation=chosen)
    torch.manual_seed(seed)
    return transform(image) / 2 + 0.5


def test_all_are_off_by_default_and_named_in_the_settings() -> None:
    assert torch.allclose(augmented(pixels()), pixels() / 255)
    assert vars(AugmentConfig()) == vars(Augmentation())
    assert Config().data.augment == AugmentConfig()


def test_color_jitter_changes_brightness_contrast_and_saturation_within_its_bounds() -> None:
    gray = torch.full((3, SIDE, SIDE), 128, dtype=torch.uint8)
    values = torch.stack([augmented(gray, seed, color_jitter=0.4)[:, 0, 0] for seed in range(30)])
    assert torch.equal(values[:, 0], values[:, 1])  # no hue: gray stays gray
    factors = values[:, 0] * 255 / 128
    assert 0.59 < float(factors.min()) < 0.75
    assert 1.25 < float(factors.max()) < 1.41
    colored = augmented(pixels(), color_jitter=0.4)
    assert not torch.allclose(colored, pixels() / 255, atol=0.05)


def test_gray_scale_has_equal_channels() -> None:
    image = augmented(pixels(), grayscale=1.0)
    expected = (pixels().float() * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(0) / 255
    for channel in image:
        torch.testing.assert_close(channel, expected, atol=1 / 250, rtol=0)


def test_random_erasing_replaces_one_box_by_noise() -> None:
    changed = (augmented(pixels(), random_erasing=1.0) - pixels() / 255).abs().amax(0) > 1e-3
    rows, columns = changed.any(1).nonzero(), changed.any(0).nonzero()
    box = changed[int(rows[0]) : int(rows[-1]) + 1, int(columns[0]) : int(columns[-1]) + 1]
    assert bool(box.all())
    assert 0.02 <= float(changed.float().mean()) < 0.34


def test_rand_augment_depends_on_the_generator_of_pytorch_alone() -> None:
    first = augmented(pixels(), 1, rand_augment=9)
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002 (the global generator is the one that must not matter)
    python, numpy = random.getstate(), np.random.get_state(legacy=False)["state"]["key"].copy()  # noqa: NPY002
    assert torch.equal(augmented(pixels(), 1, rand_augment=9), first)
    assert random.getstate() == python
    assert np.array_equal(np.random.get_state(legacy=False)["state"]["key"], numpy)  # noqa: NPY002
    others = [augmented(pixels(), seed, rand_augment=9) for seed in range(2, 8)]
    assert len({image.sum().item() for image in others}) > 3


@pytest.mark.parametrize(
    ("name", "value", "largest"),
    [("color_jitter", 1.5, 1), ("rand_augment", 11, 10), ("grayscale", -0.1, 1), ("random_erasing", 2.0, 1)],
)
def test_values_out_of_range_are_refused(name: str, value: float, largest: int) -> None:
    with pytest.raises(InputError, match=f"augmentation {name} must lie from 0 to {largest}, found {value}"):
        Augmentation(**{name: value})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=rf"data\.augment\.{name} must lie from 0 to {largest}, found {value}"):
        DataConfig(augment=AugmentConfig(**{name: value}))  # type: ignore[arg-type]
