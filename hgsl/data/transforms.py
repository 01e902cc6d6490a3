"""From a PIL image to the tensor a backbone expects: sizes are the caller's, the rest is the backbone's data config."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.functional import InterpolationMode

from hgsl.common.errors import InputError, unknown

RECIPES = ("resize_random_crop", "random_resized_crop")


@dataclass(frozen=True)
class Transform:
    """A PIL image of any size -> (3, size, size) float32, normalised.

    Attributes:
        steps: Applied one after the other.
        min_side: The shortest side, in pixels, that an image needs for a result of full sharpness: whoever reads the
            file may shrink it to that while decoding.
    """

    steps: Sequence[Callable[[Any], Any]]
    min_side: int

    def __call__(self, image: Image.Image) -> Tensor:
        value: Any = image
        for step in self.steps:
            value = step(value)
        return value


def train_transform(
    data_config: Mapping[str, Any],
    image_size: int,
    recipe: str = "resize_random_crop",
    *,
    scale: tuple[float, float] = (0.25, 1.0),
    flip: bool = True,
) -> Transform:
    """The random transform of training images.

    Args:
        data_config: The backbone's, as timm resolves it: ``mean``, ``std`` and ``interpolation`` are read.
        image_size: Side of the square result, in pixels.
        recipe: "resize_random_crop" resizes the shortest side to ``image_size`` and cuts a square at random, as
            published with HGSL; "random_resized_crop" cuts a box of random area and shape and resizes that.
        scale: Share of the image's area that such a box covers at least and at most.
        flip: Whether half of the images are mirrored.

    Raises:
        InputError: An unknown recipe, a size below 1, or a scale outside 0 < min <= max <= 1.
    """
    if recipe not in RECIPES:
        raise unknown("augmentation recipe", recipe, RECIPES)
    if not 0 < scale[0] <= scale[1] <= 1:
        raise InputError(f"scale {tuple(scale)} must be two shares of the image's area, 0 < min <= max <= 1")
    side, mode = _size(image_size), _interpolation(data_config)
    if recipe == "resize_random_crop":
        steps: list[Callable[[Any], Any]] = [v2.Resize(side, mode), v2.RandomCrop(side)]
        min_side = side
    else:
        steps = [v2.RandomResizedCrop(side, scale=tuple(scale), interpolation=mode)]
        min_side = int(np.ceil(side / scale[0] ** 0.5))  # the smallest box still has image_size pixels a side
    if flip:
        steps.append(v2.RandomHorizontalFlip())
    return Transform((*steps, _to_tensor(data_config)), min_side)


def eval_transform(data_config: Mapping[str, Any], image_size: int, *, crop_pct: float = 1.0) -> Transform:
    """The fixed transform of evaluation: shortest side to ``image_size / crop_pct``, then the central square.

    ``crop_pct`` is 1 unless asked for otherwise, as published with HGSL: the part that tells two kinds apart may be at
    the edge of the photo.

    Raises:
        InputError: A size below 1, or ``crop_pct`` outside (0, 1].
    """
    if not 0 < crop_pct <= 1:
        raise InputError(f"crop_pct {crop_pct} must be above 0 and at most 1")
    side = _size(image_size)
    resized = int(side / crop_pct)
    steps = (v2.Resize(resized, _interpolation(data_config)), v2.CenterCrop(side), _to_tensor(data_config))
    return Transform(steps, resized)


class _to_tensor:
    """PIL image -> (3, H, W) float32, (pixel / 255 - mean) / std in one multiplication and one addition."""

    def __init__(self, data_config: Mapping[str, Any]) -> None:
        mean = torch.tensor(data_config["mean"], dtype=torch.float32).view(3, 1, 1)
        std = torch.tensor(data_config["std"], dtype=torch.float32).view(3, 1, 1)
        self.factor, self.offset = 1 / (255 * std), -mean / std

    def __call__(self, image: Image.Image) -> Tensor:
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)  # (H, W, 3) -> (3, H, W)
        return torch.addcmul(self.offset, pixels.to(torch.float32, memory_format=torch.contiguous_format), self.factor)


def _size(image_size: int) -> int:
    if image_size < 1:
        raise InputError(f"image_size {image_size} must be at least 1 pixel")
    return int(image_size)


def _interpolation(data_config: Mapping[str, Any]) -> InterpolationMode:
    name = data_config.get("interpolation", "bicubic")
    known = [mode.value for mode in InterpolationMode]
    if name not in known:
        raise unknown("interpolation", name, known)
    return InterpolationMode(name)
