"""Painter of one butterfly, given its traits and its pose.

A wing is a fan around its root. The pattern is a function of its polar coordinates (position between leading and
trailing edge, fraction of the radius), as on real wings: bands and margins have a constant radius, veins a constant
position, and each cell between two veins has at most one spot. Reflection at the body paints both sides.
"""

from colorsys import hsv_to_rgb
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hgsl.data.synthetic.species import CELLS, Traits

Array = NDArray[np.floating[Any]]

FAN_END = {"fore": -0.3, "hind": -1.45}  # angle of the trailing edge at the root, radians
FAN_BEND = {"fore": 0.16, "hind": -0.1}  # how much edges and veins curve
_STEPS = 640  # samples of an outline
_HUES = ((0.0, 0.55, 0.65, 1.0), (-0.03, 0.16, 0.5, 0.76))  # red to yellow, blue to violet; few wings are green


class Pose(NamedTuple):
    """Position and orientation of a specimen, in image units: -1 to 1 across, y up."""

    x: float
    y: float
    angle: float  # radians, counterclockwise; 0 is head up
    scale: float  # length of a flat forewing
    left: float  # apparent width of the left wings, 1 = flat
    right: float
    sweep: float  # rotation of the wings forward (+) or back (-), radians
    light: float  # direction the light comes from, radians


def paint(size: int, species: Traits, pose: Pose) -> tuple[Array, Array]:
    """Paints a specimen on a transparent background.

    Args:
        size: Side of the image in pixels.
        species: Its traits, see ``species.traits``.
        pose: Position and rotation of the specimen, and opening of its wings.

    Returns:
        (3, S, S) RGB in 0..1, premultiplied by the coverage, and the coverage (S, S) in 0..1: composed with a
        background, the image is ``color + (1 - coverage) * background``.
    """
    axis = (np.arange(size, dtype=np.float32) + 0.5) * (2 / size) - 1
    dx, dy = axis[None, :] - np.float32(pose.x), np.float32(-pose.y) - axis[:, None]
    rows, columns = np.nonzero(dx * dx + dy * dy < (1.25 * pose.scale) ** 2)
    dx, dy = dx[0, columns] / pose.scale, dy[rows, 0] / pose.scale
    cos, sin = np.float32(np.cos(pose.angle)), np.float32(np.sin(pose.angle))
    x, y = cos * dx + sin * dy, cos * dy - sin * dx  # the head is up, a forewing is 1 long
    pixel = 2 / size / pose.scale

    paint = np.zeros((4, len(x)), np.float32)  # red, green, blue, coverage
    side = np.abs(x) / np.where(x < 0, np.float32(pose.left), np.float32(pose.right)) - np.float32(0.03)
    shade = _shade(x, pose)
    for wing, root, share in (("hind", -0.04, 0.6), ("fore", 0.06, 1.0)):
        mask, inside, coordinates = _fan(species, wing, side, y - np.float32(root), share * pose.sweep, pixel)
        below = paint[:, inside]
        _blend(below[:3], _pattern(species, wing, *coordinates, pixel) * shade[inside], mask)
        _blend(below[3], 1, mask)
        paint[:, inside] = below
    middle = np.nonzero(np.abs(x) < 0.36)[0]
    below = paint[:, middle]
    for color, mask in _body(species, x[middle], y[middle], pixel):
        _blend(below[:3], color, mask)
        _blend(below[3], 1, mask)
    paint[:, middle] = below
    image = np.zeros((4, size, size), np.float32)
    image[:, rows, columns] = paint
    return image[:3], image[3]


def _shade(x: Array, pose: Pose) -> Array:
    """Light on the raised left and right wings; the side toward the light is the brighter one."""
    slant = np.where(x < 0, np.float32(1 - pose.left), np.float32(pose.right - 1))
    return np.float32(0.55 * np.cos(pose.light)) * slant + 1 - np.float32(0.25) * np.abs(slant)


def _fan(
    species: Traits, wing: str, x: Array, y: Array, sweep: float, pixel: float
) -> tuple[Array, NDArray[np.intp], tuple[Array, Array, Array, float]]:
    """Pixels of a wing: their coverage, their indices, and their coordinates relative to its root.

    The coordinates are (t, r, rim, spread): t runs from 0 at the leading edge to 1 at the trailing edge, r is the
    distance from the root, rim the length of the wing (without its tail) at t, and spread its angle in radians.
    """
    first, last = species[f"{wing}_lead"], FAN_END[wing]
    r = np.sqrt(x * x + y * y)
    t = (np.float32(first + sweep) - np.arctan2(y, x) - np.float32(FAN_BEND[wing]) * r) / (first - last)
    outline, without_tail = _outline(species, wing)
    step = (np.clip(t, 0, 1) * (_STEPS - 1)).astype(np.int32)
    slope = (np.gradient(outline) * ((_STEPS - 1) / (first - last))).astype(np.float32)[step]
    radial = (outline[step] - r) / np.sqrt(1 + (slope / np.maximum(r, np.float32(0.2))) ** 2)
    lateral = np.minimum(t, 1 - t) * (first - last) * r
    mask = _step(np.minimum(radial, lateral), pixel)
    inside = np.nonzero(mask)[0]
    return mask[inside], inside, (np.clip(t[inside], 0, 1), r[inside], without_tail[step[inside]], first - last)


def _pattern(species: Traits, wing: str, t: Array, r: Array, rim: Array, spread: float, pixel: float) -> Array:
    """Colors (3, n) of a wing at the coordinates that ``_fan`` returns, inner parts first."""
    traits = _traits_of_wing(species, wing)
    colors = _palette(species, wing)
    out = r / rim
    soft = pixel / np.maximum(rim, np.float32(0.3))  # a pixel as a share of the way out
    cells = CELLS[wing]
    cell = np.minimum(np.floor(t * cells), cells - 1)
    across = t * cells - cell - np.float32(0.5)  # -0.5 .. 0.5 between two veins
    beside = across * (spread / cells) * r  # the same as a length
    ripple = np.cos(np.float32(2 * np.pi) * across)

    rgb = colors["base"] * (1 - species["glow"] * (out - 0.5))
    _blend(rgb, colors["dark"], 0.6 * np.exp(-9 * out * out))
    band = np.abs(out - traits["band"] - traits["band_slope"] * (t - 0.5) - 0.012 * ripple)
    _blend(rgb, colors["dark"], 0.5 * _step(traits["band_width"] + 0.02 - band, soft))
    _blend(rgb, colors["band"], _step(traits["band_width"] - band, soft))
    if wing == "fore":
        tip = out - 1.02 + traits["tip"] * (1 - 1.5 * t)
        _blend(rgb, colors["dark"], _step(tip + 0.03 * ripple, 3 * soft))
    crescent = np.abs(out - 0.92 + traits["margin"] - 0.03 * ripple)
    _blend(rgb, colors["band"], _step(traits["lunule"] * (0.6 + 0.5 * ripple) - crescent, soft))
    vein = np.abs(np.abs(beside) - (0.5 * spread / cells) * r)
    _blend(rgb, colors["dark"], 0.8 * _step(species["vein"] + 0.006 * out - vein, pixel))
    _blend(rgb, colors["dark"], _step(out - 1 + traits["margin"] - 0.015 * ripple, soft))
    dots = np.hypot(beside, (out - 1 + 0.45 * traits["margin"]) * rim)
    _blend(rgb, colors["pale"], _step(traits["dots"] * traits["margin"] - dots, pixel))
    discal = np.hypot((t - 0.36) * spread * r, 1.6 * (r - 0.36 * rim))
    _blend(rgb, colors["dark"], _step(traits["discal"] - discal, pixel))
    _blend(rgb, colors["band"], _step(0.5 * traits["discal"] - discal, pixel))

    present = np.array([traits[f"spot_{number}"] for number in range(cells)], np.float32)[cell.astype(np.intp)]
    radius = traits["spot"] * (spread / cells) * traits["row"] * rim
    eye = np.hypot(beside, r - traits["row"] * rim)
    for color, share in (("ring", 1.0), ("dark", 0.74), ("pale", 0.3)):
        _blend(rgb, colors[color], _step(share * radius - eye, pixel) * present)
    return rgb * (0.95 + 0.06 * np.cos(14 * t + 3 * out))  # the wing is slightly wavy


def _outline(species: Traits, wing: str) -> tuple[Array, Array]:
    """Length of the wing at ``_STEPS`` positions from leading to trailing edge, with and without its tail."""
    traits = _traits_of_wing(species, wing)
    t = np.linspace(0, 1, _STEPS)
    edge = 1 - (1 - traits["tornus"]) * t - traits["hollow"] * np.sin(np.pi * t)
    corner = 0.2 if wing == "fore" else 0.34
    edge *= 1 - corner * np.exp(-t / 0.05) - 0.3 * np.exp(-(1 - t) / 0.09)
    edge *= 1 - traits["scallop"] * (1 - np.abs(np.sin(np.pi * t * CELLS[wing])))
    edge *= traits["length"]
    whole = edge.copy()
    if wing == "hind":
        whole += max(traits["tail"], 0.0) * np.exp(-(((t - 0.78) / 0.04) ** 2))
    return whole.astype(np.float32), edge.astype(np.float32)


def _traits_of_wing(species: Traits, wing: str) -> Traits:
    """The traits of one wing, without its name as a prefix."""
    prefix = f"{wing}_"
    return {name.removeprefix(prefix): value for name, value in species.items() if name.startswith(prefix)}


def _palette(species: Traits, wing: str = "fore") -> dict[str, Array]:
    def color(hue: float, saturation: float, value: float) -> Array:
        turn = float(np.interp(hue, *_HUES)) % 1.0
        clipped = (min(max(part, 0.0), 1.0) for part in (saturation, value))
        return np.array(hsv_to_rgb(turn, *clipped), np.float32)[:, None]

    shift = species["hind_hue"] if wing == "hind" else 0.0
    return {
        "base": color(species["hue"] + shift, species["saturation"], species["value"]),
        "band": color(species["band_hue"], species["band_saturation"], 0.95),
        "ring": color(species["spot_hue"], 0.75, 0.92),
        "dark": color(species["dark_hue"], 0.6, species["dark_value"]),
        "pale": color(0.4, 0.12, 0.97),
    }


def _body(species: Traits, x: Array, y: Array, pixel: float) -> list[tuple[Array, Array]]:
    """Colors and coverages of the antennae, abdomen, thorax and head, in the order in which they are painted."""
    colors = _palette(species)
    aside = np.abs(x)
    rise = np.clip((y - 0.27) / species["antenna"], 0, 1)
    track = np.abs(aside - 0.015 - 0.3 * rise * rise) / np.sqrt(1 + (0.6 * rise / species["antenna"]) ** 2)
    along = np.maximum(np.abs(y - 0.27 - species["antenna"] / 2) - species["antenna"] / 2, 0)
    thick = 0.009 + species["club"] * np.clip((rise - 0.82) * 8, 0, 1)
    parts = [(colors["dark"], _step(thick - np.hypot(track, along), pixel))]
    fur = 0.6 * colors["dark"] + 0.4 * colors["base"]
    middle = -0.02 - species["abdomen"] / 2
    for center, wide, high in (
        (middle, 0.052, species["abdomen"] / 2 + 0.06),
        (0.08, 0.078, 0.17),
        (0.26, 0.055, 0.05),
    ):
        distance = (1 - np.hypot(x / wide, (y - center) / high)) * wide
        round_off = 1.1 - 0.5 * (x / wide) ** 2
        stripes = 0.88 + 0.12 * np.cos(2 * np.pi * y / 0.075)
        parts.append((fur * round_off * stripes, _step(distance, pixel)))
    return parts


def _step(distance: Array, pixel: float | Array) -> Array:
    """Coverage of a pixel by a shape whose edge is ``distance`` inside it."""
    return np.clip(distance / pixel + 0.5, 0, 1).astype(np.float32)


def _blend(rgb: Array, color: Array | int, mask: Array) -> None:
    rgb += mask * (color - rgb)
