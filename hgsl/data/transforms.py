"""From a PIL image to the tensor a backbone expects: sizes are the caller's, the rest is the backbone's data config."""

import math
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
class ShortestSide:
    """Resizes an image so that its shortest side has ``side`` pixels; the other keeps the proportions, rounded down.

    An image that is already so is returned as it is, so resizing twice is resizing once: whoever reads the file may
    do it early, or keep the result (see ``hgsl.data.cache``), and no pixel of the final tensor changes.

    Attributes:
        side: In pixels.
        interpolation: A name of ``PIL.Image.Resampling`` in lower case, such as "bicubic".
        enlarge: Whether smaller images are enlarged; otherwise they are left alone.
    """

    side: int
    interpolation: str
    enlarge: bool = True

    def __call__(self, image: Image.Image) -> Image.Image:
        width, height = image.size
        short = min(width, height)
        if short == self.side or (short < self.side and not self.enlarge):
            return image
        size = (width * self.side // short, height * self.side // short)
        return image.resize(size, Image.Resampling[self.interpolation.upper()])


@dataclass(frozen=True)
class Transform:
    """A PIL image of any size -> (3, size, size) float32, normalised: ``resize`` first, then ``steps`` in turn."""

    resize: ShortestSide
    steps: Sequence[Callable[[Any], Any]]

    def __call__(self, image: Image.Image) -> Tensor:
        value: Any = self.resize(image)
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
    side, interpolation = _size(image_size), _interpolation(data_config)
    if recipe == "resize_random_crop":
        resize = ShortestSide(side, interpolation)
        crop = v2.RandomCrop(side)
    else:
        # Even the smallest square box then has image_size pixels a side, if the photo has them.
        resize = ShortestSide(math.ceil(side / math.sqrt(scale[0])), interpolation, enlarge=False)
        crop = v2.RandomResizedCrop(side, scale=tuple(scale), interpolation=InterpolationMode(interpolation))
    mirror = [v2.RandomHorizontalFlip()] if flip else []
    return Transform(resize, (crop, *mirror, ToTensor(data_config)))


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
    resize = ShortestSide(int(side / crop_pct), _interpolation(data_config))
    return Transform(resize, (v2.CenterCrop(side), ToTensor(data_config)))


class ToTensor:
    """PIL image -> (3, H, W) float32, (pixel / 255 - mean) / std in one multiplication and one addition."""

    def __init__(self, data_config: Mapping[str, Any]) -> None:
        mean = torch.tensor(data_config["mean"], dtype=torch.float32).view(3, 1, 1)
        std = torch.tensor(data_config["std"], dtype=torch.float32).view(3, 1, 1)
        self.factor, self.offset = 1 / (255 * std), -mean / std

    def __call__(self, image: Image.Image) -> Tensor:
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()  # (H, W, 3) -> (3, H, W)
        return pixels.float().mul_(self.factor).add_(self.offset)


def _size(image_size: int) -> int:
    if image_size < 1:
        raise InputError(f"image_size {image_size} must be at least 1 pixel")
    return int(image_size)


def _interpolation(data_config: Mapping[str, Any]) -> str:
    name = str(data_config.get("interpolation", "bicubic"))
    known = [mode.value for mode in InterpolationMode if mode.value.upper() in Image.Resampling.__members__]
    if name not in known:
        raise unknown("interpolation", name, known)
    return name
