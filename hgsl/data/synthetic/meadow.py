"""Scene around a butterfly: background, leaves and blades in front, and light."""

from colorsys import hsv_to_rgb
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

Array = NDArray[np.floating[Any]]
Generator = np.random.Generator
Color = tuple[float, float, float]  # hue, saturation, value

# Background color; color, shape, number and size (in image sides) of the objects scattered over it.
GROUNDS: tuple[tuple[Color, Color, str, int, float], ...] = (
    ((0.27, 0.55, 0.35), (0.28, 0.58, 0.6), "leaf", 20, 0.4),
    ((0.22, 0.5, 0.4), (0.24, 0.55, 0.62), "blade", 26, 0.9),
    ((0.3, 0.45, 0.35), (0.88, 0.4, 0.92), "flower", 9, 0.16),
    ((0.07, 0.45, 0.3), (0.085, 0.5, 0.58), "leaf", 20, 0.34),
    ((0.1, 0.24, 0.46), (0.09, 0.2, 0.68), "pebble", 34, 0.1),
    ((0.56, 0.3, 0.8), (0.16, 0.3, 0.95), "pebble", 12, 0.12),
    ((0.25, 0.5, 0.42), (0.14, 0.75, 0.95), "flower", 10, 0.14),
)


_ALONG = np.linspace(0, 1, 12)
_BOW = _ALONG * (1 - _ALONG)
_HALVES = np.outer((1, 0, -1), np.sin(np.pi * _ALONG**0.8) ** 0.9)  # one edge, the midrib, the other edge


def ground(size: int, rng: Generator) -> Image.Image:
    """Draws a background: smooth color noise with leaves, grass, flowers or pebbles, the far ones blurred."""
    base, tint, shape, number, length = GROUNDS[rng.integers(len(GROUNDS))]
    drift = rng.uniform(-0.04, 0.04)
    clouds = _clouds(size, rng)
    dark, light = (np.array(_rgb((base[0] + drift, base[1], base[2] * gain)), np.float32) for gain in (0.7, 1.45))
    image = Image.fromarray((dark + clouds[..., None] * (light - dark)).clip(0, 255).astype(np.uint8))
    for nearness in (0.8, 1.0):
        draw = ImageDraw.Draw(image)
        for _ in range(round(number * rng.uniform(0.3, 0.6))):
            color = (tint[0] + drift + rng.normal(0, 0.015), tint[1], tint[2] * nearness * rng.uniform(0.8, 1.1))
            position = complex(rng.uniform(-0.1, 1.1), rng.uniform(-0.1, 1.1)) * size
            _draw_object(draw, shape, position, length * nearness * rng.uniform(0.7, 1.3) * size, color, rng)
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.006, 0.02) * size / nearness**2))
    return image


def foliage(size: int, number: int, rng: Generator) -> Image.Image:
    """Draws ``number`` leaves or blades that reach in from the border: RGBA, transparent elsewhere, antialiased."""
    large = 2 * size
    image = Image.new("RGBA", (large, large))
    draw = ImageDraw.Draw(image)
    for _ in range(number):
        border = rng.uniform(0, 2 * np.pi)
        root = (0.5 + 0.5j + 0.68 * complex(np.cos(border), np.sin(border))) * large
        shape = "leaf" if rng.random() < 0.6 else "blade"
        length = rng.uniform(0.42, 0.62) if shape == "leaf" else rng.uniform(0.7, 1.1)
        color = (rng.uniform(0.2, 0.36), rng.uniform(0.4, 0.65), rng.uniform(0.38, 0.68))
        _draw_object(draw, shape, root, length * large, color, rng, turn=border + np.pi + rng.uniform(-0.55, 0.55))
    return image.reduce(2)


def light(image: Array, rng: Generator) -> Array:
    """Applies light to an image (3, S, S) in 0..1: exposure, color cast, a gradient, contrast and sensor noise."""
    size = image.shape[-1]
    axis = np.linspace(-1, 1, size, dtype=np.float32)
    toward = rng.uniform(0, 2 * np.pi)
    slope = rng.uniform(0, 0.28)
    across = np.float32(slope * np.cos(toward)) * axis[None, :] + np.float32(slope * np.sin(toward)) * axis[:, None]
    warmth, green = rng.normal(0, 0.06), rng.normal(0, 0.025)
    cast = np.array([1 + warmth, 1 + green, 1 - warmth], np.float32)[:, None, None]
    lit = image * (cast * np.float32(rng.uniform(0.8, 1.3))) * (1 + across)
    lit = np.float32(0.45) + (lit - np.float32(0.45)) * np.float32(rng.uniform(0.8, 1.1))
    return lit + rng.standard_normal(image.shape, np.float32) * np.float32(rng.uniform(0.008, 0.035))


def _clouds(size: int, rng: Generator) -> Array:
    """Smooth noise (S, S) of three octaves, approximately in 0..1."""
    total = np.zeros((size, size), np.float32)
    for cells, weight in ((3, 0.55), (7, 0.3), (17, 0.15)):
        grid = Image.fromarray(rng.random((cells, cells), np.float32))
        total += np.float32(weight) * np.asarray(grid.resize((size, size), Image.Resampling.BICUBIC))
    return total


def _draw_object(
    draw: ImageDraw.ImageDraw,
    shape: str,
    position: complex,
    length: float,
    color: Color,
    rng: Generator,
    turn: float | None = None,
) -> None:
    """Draws one object at ``position`` (pixels): a leaf, a blade of grass, a flower or a pebble."""
    turn = rng.uniform(0, 2 * np.pi) if turn is None else turn
    if shape == "leaf":
        _leaf(draw, position, turn, length, rng.uniform(0.16, 0.26), rng.uniform(-0.25, 0.25), color)
    elif shape == "blade":
        _leaf(draw, position, turn, length, rng.uniform(0.025, 0.045), rng.uniform(-0.3, 0.3), color)
    elif shape == "flower":
        petals = int(rng.integers(5, 9))
        for petal in range(petals):
            around = turn + 2 * np.pi * petal / petals
            _leaf(draw, position, around, length, 0.3, 0.1, (*color[:2], color[2] * (0.9 + 0.1 * (petal % 2))))
        _disc(draw, position, 0.22 * length, (0.12, 0.8, 0.75))
    else:
        _disc(draw, position, 0.55 * length, (*color[:2], color[2] * 0.7))
        _disc(draw, position - (0.05 + 0.05j) * length, 0.5 * length, color)


def _leaf(
    draw: ImageDraw.ImageDraw,
    root: complex,
    turn: float,
    length: float,
    width: float,
    curve: float,
    color: Color,
) -> None:
    """Draws a leaf with a light and a dark half along a curved midrib; width and curve are fractions of its length."""
    stalk = length * complex(np.cos(turn), np.sin(turn))
    points = root + stalk * (_ALONG + 1j * (curve * _BOW + width * _HALVES))
    one, rib, other = (line.tolist() for line in points.view(np.float64))  # x, y, x, y, ...
    back = points[1, ::-1].copy().view(np.float64).tolist()
    hue, saturation, value = color
    draw.polygon(one + back, fill=_rgb((hue, saturation, value * 1.08)))
    draw.polygon(other + back, fill=_rgb((hue, saturation, value * 0.86)))
    draw.line(rib, fill=_rgb((hue, saturation * 0.75, value * 1.2)), width=max(1, round(0.012 * length)))


def _disc(draw: ImageDraw.ImageDraw, center: complex, radius: float, color: Color) -> None:
    x, y, r = center.real, center.imag, radius
    draw.ellipse((x - r, y - r, x + r, y + r), fill=_rgb(color))


def _rgb(color: Color) -> tuple[int, int, int]:
    hue, saturation, value = color
    red, green, blue = hsv_to_rgb(hue % 1.0, min(max(saturation, 0.0), 1.0), min(max(value, 0.0), 1.0))
    return round(255 * red), round(255 * green), round(255 * blue)
