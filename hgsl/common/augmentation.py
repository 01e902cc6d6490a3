"""Augmentations of training images beyond crop and flip, by name; all are off by default."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from hgsl.common.errors import InputError
from hgsl.common.images import to_pixels
from hgsl.common.random_state import seeded_python

Step = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Augmentation:
    """Random changes of a training image after its crop and flip, in this order.

    Attributes:
        color_jitter: Brightness, contrast and saturation change by factors from 1 - x to 1 + x; hue, which often
            distinguishes classes, does not.
        rand_augment: Magnitude of timm's RandAugment, 0 to 10: two random operations per image, among them rotation,
            shear, posterization and solarization.
        grayscale: Probability of a gray image.
        random_erasing: Probability that noise replaces a random box.

    Raises:
        InputError: A value outside its range.
    """

    color_jitter: float = 0.0
    rand_augment: int = 0
    grayscale: float = 0.0
    random_erasing: float = 0.0

    def __post_init__(self) -> None:
        for name, largest in {"color_jitter": 1, "rand_augment": 10, "grayscale": 1, "random_erasing": 1}.items():
            if not 0 <= getattr(self, name) <= largest:
                raise InputError(f"augmentation {name} must lie from 0 to {largest}, found {getattr(self, name)}")

    def of_pixels(self, data_config: Mapping[str, Any]) -> list[Step]:
        """Returns the operations on uint8 pixels (3, S, S)."""
        x = self.color_jitter
        steps: list[Step] = [v2.ColorJitter(x, x, x)] if x else []
        steps += [RandAugment(self.rand_augment, data_config["mean"])] if self.rand_augment else []
        return [*steps, v2.RandomGrayscale(self.grayscale)] if self.grayscale else steps

    def of_normalized(self) -> list[Step]:
        """Returns the operations on normalized float pixels (3, S, S)."""
        return [v2.RandomErasing(self.random_erasing, value="random")] if self.random_erasing else []


class RandAugment:
    """timm's RandAugment of uint8 pixels (3, S, S), whose random choices depend on PyTorch's generator alone.

    Args:
        magnitude: 0 to 10; each operation draws its own from a normal distribution of standard deviation 0.5 around it.
        mean: Mean of the normalization, 0 to 1: the color of pixels from outside the image.
    """

    def __init__(self, magnitude: int, mean: tuple[float, ...]) -> None:
        from timm.data.auto_augment import rand_augment_transform  # its import takes long

        fill = tuple(round(255 * value) for value in mean)
        self.operations = rand_augment_transform(f"rand-m{magnitude}-mstd0.5-inc1", {"img_mean": fill})

    def __call__(self, pixels: Tensor) -> Tensor:
        image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())  # (3, S, S) -> (S, S, 3)
        with seeded_python(int(torch.randint(2**31, ()))):
            return to_pixels(self.operations(image))
