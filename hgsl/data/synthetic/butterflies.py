"""Procedurally drawn butterflies: fine-grained classes, any number of classes and images, and no files.

Classes form genera, whose species share shape, palette and pattern and differ in a few small steps: the wing cells with
an eyespot, the position of a band, a shade of color. Images of a class vary in pose, scale, light, background and
occlusion, so that neither the overall color nor the position identifies a class.
"""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from hgsl.common.errors import InputError
from hgsl.data.build_manifest import make_manifest
from hgsl.data.manifest import Manifest
from hgsl.data.synthetic import butterfly, meadow, species
from hgsl.data.synthetic.shared_images import SharedImages

Array = NDArray[np.floating[Any]]

_MIN_SIDE = 16


def load(
    root: Path | None = None,
    *,
    num_classes: int = 32,
    images_per_class: int = 16,
    image_size: int = 96,
    seed: int = 0,
) -> Manifest:
    """Lists the butterflies; an image is drawn when it is read, and is the same in every process.

    An image depends on neither the number of classes nor the number of images per class.

    Args:
        root: Ignored, as there are no files.
        num_classes: Number of classes.
        images_per_class: Number of images of each class.
        image_size: Side of an image in pixels, at least 16.
        seed: Seed of the classes and their images.

    Raises:
        InputError: A number is not an integer, or too small.
    """
    for name, value, minimum in (
        ("num_classes", num_classes, 1),
        ("images_per_class", images_per_class, 1),
        ("image_size", image_size, _MIN_SIDE),
        ("seed", seed, 0),
    ):
        _check(name, value, minimum)
    names = [species.class_name(label) for label in range(num_classes)]
    folders = [f"seed-{seed}/{image_size}px/{name.replace(' ', '_')}" for name in names]
    labels = np.repeat(np.arange(num_classes), images_per_class)
    return make_manifest(
        "synthetic",
        Path() if root is None else Path(root),
        [f"{folder}/{image:04}.png" for folder in folders for image in range(images_per_class)],
        labels,
        names,
        groups=[species.genus(label) for label in labels.tolist()],
        render=SharedImages(
            partial(_draw_row, images_per_class=images_per_class, image_size=image_size, seed=seed),
            len(labels),
            image_size,
        ),
    )


def draw(class_index: int, image_index: int, image_size: int = 96, seed: int = 0) -> Image.Image:
    """Draws one RGB image, which depends on the four arguments alone.

    ``seed`` and ``class_index`` determine the traits of the species; pose, light, background and occlusion depend on
    ``image_index`` too. The pixels are the same in any order and any process; another processor or another release of
    NumPy or Pillow may round some of them differently.

    Raises:
        InputError: A number is not an integer, or too small.
    """
    for name, value, minimum in (
        ("class_index", class_index, 0),
        ("image_index", image_index, 0),
        ("image_size", image_size, _MIN_SIDE),
        ("seed", seed, 0),
    ):
        _check(name, value, minimum)
    rng = np.random.default_rng([seed, 3, class_index, image_index])
    pose = _pose(rng)
    color, cover = butterfly.paint(image_size, species.traits(class_index, seed), pose)
    scene = _planes(meadow.ground(image_size, rng))
    scene = color + (1 - cover) * (1 - np.float32(0.5) * _shadow(cover, pose)) * scene
    leaves = meadow.foliage(image_size, int(rng.integers(0, 3)), rng)
    scene += _planes(leaves.getchannel("A")) * (_planes(leaves.convert("RGB")) - scene)
    pixels = meadow.light(scene, rng).clip(0, 1) * 255 + 0.5
    return Image.fromarray(pixels.astype(np.uint8).transpose(1, 2, 0))


def _draw_row(row: int, images_per_class: int, image_size: int, seed: int) -> Image.Image:
    label, image = divmod(row, images_per_class)
    return draw(label, image, image_size, seed)


def _check(name: str, value: int, minimum: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < minimum:
        raise InputError(f"{name} {value!r} must be a whole number of at least {minimum}")


def _pose(rng: np.random.Generator) -> butterfly.Pose:
    """A random pose: mostly upright, central and open, with the left and right wings raised independently."""
    left, right = 1 - 0.45 * rng.random(2) ** 1.5
    return butterfly.Pose(
        x=rng.uniform(-0.15, 0.15),
        y=rng.uniform(-0.15, 0.15),
        angle=rng.uniform(-1, 1),
        scale=rng.uniform(0.68, 0.95),
        left=left,
        right=right,
        sweep=rng.uniform(-0.12, 0.12),
        light=rng.uniform(0, 2 * np.pi),
    )


def _shadow(cover: Array, pose: butterfly.Pose) -> Array:
    """The specimen's soft shadow (S, S): its coverage, blurred and shifted down and away from the light."""
    size = cover.shape[-1]
    right, down = -0.05 * size * np.cos(pose.light), 0.05 * size * abs(np.sin(pose.light))
    image = Image.fromarray((cover * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(0.025 * size))
    shifted = image.transform(image.size, Image.Transform.AFFINE, (1, 0, -round(right), 0, 1, -round(down)))
    return np.asarray(shifted, np.float32) / 255


def _planes(image: Image.Image) -> Array:
    """(H, W, C) bytes as (C, H, W) floats in 0..1; a single channel stays (H, W)."""
    pixels = np.asarray(image, np.float32) / 255
    return pixels if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))
