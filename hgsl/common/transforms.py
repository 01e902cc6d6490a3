"""Transforms from an RGB image to the tensor that a backbone expects, for training and for evaluation.

Sizes are arguments; mean, standard deviation and interpolation come from the backbone's data config. Images are uint8
tensors, which PyTorch resizes several times faster than Pillow, with differences of at most one gray level.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from hgsl.common.augmentation import Augmentation
from hgsl.common.errors import InputError, unknown
from hgsl.common.images import check_shape, to_pixels

RECIPES = ("resize_random_crop", "random_resized_crop")
INTERPOLATIONS = ("bilinear", "bicubic")
CROP_ASPECT = 8  # aspect ratio above which only the center of an image is used


@dataclass(frozen=True)
class ShortestSide:
    """Resizes pixels (3, H, W) to a shortest side of ``side`` pixels; the longest side is rounded down.

    An image with an aspect ratio above ``CROP_ASPECT`` is first cropped to this ratio at its center, so that the result
    has at most ``CROP_ASPECT * side ** 2`` pixels.

    The operation is idempotent: pixels can be resized when they are read or cached, and the transform of the result
    returns the same tensor.

    Attributes:
        side: In pixels.
        interpolation: "bilinear" or "bicubic", both with antialiasing.
        leave: Images whose shortest side is at most this are not resized; 0 resizes all, smaller ones too.
    """

    side: int
    interpolation: str
    leave: int = 0

    def __call__(self, pixels: Tensor) -> Tensor:
        check_shape(pixels.shape[-1], pixels.shape[-2])
        pixels = _central(pixels)
        height, width = pixels.shape[-2:]
        short = min(height, width)
        if short == self.side or short <= self.leave:
            return pixels
        size = [height * self.side // short, width * self.side // short]
        return v2.functional.resize(pixels, size, InterpolationMode(self.interpolation), antialias=True)


def _central(pixels: Tensor) -> Tensor:
    """Returns a view of the center (3, H, W) with an aspect ratio of at most ``CROP_ASPECT``."""
    longest = CROP_ASPECT * min(pixels.shape[-2:])
    for axis in (-2, -1):
        excess = pixels.shape[axis] - longest
        if excess > 0:
            pixels = pixels.narrow(axis, excess // 2, longest)
    return pixels


@dataclass(frozen=True)
class Transform:
    """RGB image, or pixels (3, H, W) -> (3, size, size) float32, by ``resize`` and then ``steps``."""

    resize: ShortestSide
    steps: Sequence[Callable[[Any], Any]]

    def __call__(self, image: Image.Image | Tensor) -> Tensor:
        value: Any = self.resize(to_pixels(image) if isinstance(image, Image.Image) else _checked_pixels(image))
        for step in self.steps:
            value = step(value)
        return value


def _checked_pixels(image: object) -> Tensor:
    description = f"of type {type(image).__name__}"
    if isinstance(image, Tensor):
        if image.dtype == torch.uint8 and image.ndim == 3 and len(image) == 3:
            return image
        description = f"a {image.dtype} tensor of shape {tuple(image.shape)}"
    raise InputError(
        f"image is {description}: expected a PIL image, which hgsl.common.images.read_image returns for a path, or a "
        "uint8 tensor (3, H, W) of values from 0 to 255"
    )


def train_transform(
    data_config: Mapping[str, Any],
    image_size: int,
    recipe: str = "resize_random_crop",
    *,
    scale: tuple[float, float] = (0.25, 1.0),
    flip: bool = True,
    augmentation: Augmentation | None = None,
) -> Transform:
    """Returns the random transform of training images.

    Args:
        data_config: Data config of the backbone, as timm resolves it; ``mean``, ``std`` and ``interpolation`` are used.
        image_size: Side of the square result, in pixels.
        recipe: "resize_random_crop" resizes the shortest side to ``image_size`` and crops a random square, as published
            with HGSL; "random_resized_crop" crops a box of random area and aspect ratio and resizes it.
        scale: Smallest and largest area of the box, as a fraction of the image's area.
        flip: Whether half of the images are flipped horizontally.
        augmentation: Further random changes.

    Raises:
        InputError: An unknown recipe, a size below 1, or a scale outside 0 < min <= max <= 1.
    """
    if recipe not in RECIPES:
        raise unknown("augmentation recipe", recipe, RECIPES)
    if not 0 < scale[0] <= scale[1] <= 1:
        raise InputError(f"scale {tuple(scale)} must be two shares of the image's area, 0 < min <= max <= 1")
    side, interpolation = _size(image_size), _interpolation(data_config)
    if recipe == "resize_random_crop":
        resize = ShortestSide(side, interpolation)
        crop = v2.RandomCrop(side)
    else:
        # At this size even the smallest square box has image_size pixels per side. Images that are hardly larger are
        # not downscaled, which would take more time than it saves.
        resized_side = math.ceil(side / math.sqrt(scale[0]))
        resize = ShortestSide(resized_side, interpolation, leave=5 * resized_side // 4)
        crop = v2.RandomResizedCrop(side, scale=tuple(scale), interpolation=InterpolationMode(interpolation))
    steps: list[Callable[[Any], Any]] = [crop, *([v2.RandomHorizontalFlip()] if flip else [])]
    chosen = augmentation or Augmentation()
    steps += [*chosen.of_pixels(data_config), Normalize(data_config), *chosen.of_normalized()]
    return Transform(resize, steps)


def eval_transform(data_config: Mapping[str, Any], image_size: int, *, crop_pct: float = 1.0) -> Transform:
    """Returns the deterministic transform of evaluation: shortest side to ``image_size / crop_pct``, center crop.

    ``crop_pct`` is 1 by default, as published with HGSL: what distinguishes classes may be at the edge of the image.
    Where the data config has the ``crop_mode`` "squash", the whole image is resized to the square instead.

    Raises:
        InputError: A size below 1, or ``crop_pct`` outside (0, 1].
    """
    if not 0 < crop_pct <= 1:
        raise InputError(f"crop_pct {crop_pct} must be above 0 and at most 1")
    side = _size(image_size)
    larger, interpolation = int(side / crop_pct), _interpolation(data_config)
    crop: list[Callable[[Any], Any]] = [v2.CenterCrop(side)]
    if is_squashed(data_config):
        crop.insert(0, v2.Resize((larger, larger), InterpolationMode(interpolation), antialias=True))
    return Transform(ShortestSide(larger, interpolation), (*crop, Normalize(data_config)))


def is_squashed(data_config: Mapping[str, Any]) -> bool:
    """Whether images of evaluation are resized to a square whatever their aspect ratio, as in SigLIP's pretraining."""
    return data_config.get("crop_mode") == "squash"


class Normalize:
    """(3, H, W) uint8 -> float32, (pixel / 255 - mean) / std in one multiplication and one addition."""

    def __init__(self, data_config: Mapping[str, Any]) -> None:
        mean = torch.tensor(data_config["mean"], dtype=torch.float32).view(3, 1, 1)
        std = torch.tensor(data_config["std"], dtype=torch.float32).view(3, 1, 1)
        self.factor, self.offset = 1 / (255 * std), -mean / std

    def __call__(self, pixels: Tensor) -> Tensor:
        return pixels.contiguous().float().mul_(self.factor).add_(self.offset)


def _size(image_size: int) -> int:
    if image_size < 1:
        raise InputError(f"image_size {image_size} must be at least 1 pixel")
    return int(image_size)


def _interpolation(data_config: Mapping[str, Any]) -> str:
    name = str(data_config.get("interpolation", "bicubic"))
    if name not in INTERPOLATIONS:
        raise unknown("interpolation", name, INTERPOLATIONS)
    return name
