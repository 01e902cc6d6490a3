"""Species of the synthetic butterflies: their traits and names, in any number.

The traits of a genus are random; those of a species differ from its genus by a small step or not at all, and in the
wing cells with an eyespot. Most pairs of classes are thus easy to distinguish, and a few are hard.
"""

import numpy as np

Traits = dict[str, float]

GENERA = 6  # genera within a block of classes
SPECIES = 16  # species per genus; further classes form blocks of new genera
CELLS = {"fore": 6, "hind": 7}  # of each wing, between its veins

# name: (low, high, step). The value of a genus lies between low and high; a species differs by -step, 0 or +step.
# Lengths are in forewing lengths, positions on a wing in 0..1, hues in 0..1 along ``_HUES``.
TRAITS = {
    "hue": (0.0, 1.0, 0.07),
    "saturation": (0.4, 0.95, 0.06),
    "value": (0.6, 0.98, 0.05),
    "glow": (-0.35, 0.35, 0.05),
    "hind_hue": (-0.12, 0.12, 0.06),
    "band_hue": (0.0, 1.0, 0.09),
    "band_saturation": (0.05, 0.75, 0.16),
    "dark_hue": (0.02, 0.12, 0.0),
    "dark_value": (0.09, 0.22, 0.0),
    "spot_hue": (0.0, 1.0, 0.1),
    "vein": (0.004, 0.009, 0.002),
    "fore_length": (0.94, 1.08, 0.04),
    "fore_lead": (0.88, 1.1, 0.02),
    "fore_tornus": (0.6, 0.82, 0.06),
    "fore_hollow": (-0.05, 0.13, 0.04),
    "fore_scallop": (0.0, 0.03, 0.01),
    "fore_margin": (0.04, 0.13, 0.04),
    "fore_dots": (-0.15, 0.32, 0.12),
    "fore_band": (0.46, 0.64, 0.09),
    "fore_band_width": (0.03, 0.08, 0.032),
    "fore_band_slope": (-0.3, 0.3, 0.1),
    "fore_row": (0.74, 0.82, 0.05),
    "fore_spot": (0.24, 0.36, 0.08),
    "fore_lunule": (-0.03, 0.03, 0.016),
    "fore_discal": (0.0, 0.08, 0.04),
    "fore_tip": (-0.1, 0.5, 0.1),
    "hind_length": (0.7, 0.84, 0.04),
    "hind_lead": (0.4, 0.5, 0.01),
    "hind_tornus": (0.72, 1.0, 0.06),
    "hind_hollow": (-0.14, -0.02, 0.04),
    "hind_scallop": (0.0, 0.06, 0.016),
    "hind_tail": (-0.3, 0.35, 0.08),
    "hind_margin": (0.04, 0.14, 0.04),
    "hind_dots": (-0.15, 0.32, 0.12),
    "hind_band": (0.4, 0.6, 0.09),
    "hind_band_width": (0.03, 0.09, 0.032),
    "hind_band_slope": (-0.2, 0.2, 0.1),
    "hind_row": (0.7, 0.8, 0.05),
    "hind_spot": (0.26, 0.4, 0.08),
    "hind_lunule": (-0.03, 0.03, 0.016),
    "hind_discal": (0.0, 0.07, 0.04),
    "abdomen": (0.42, 0.58, 0.03),
    "antenna": (0.36, 0.52, 0.03),
    "club": (0.014, 0.024, 0.004),
}

_STARTS = ("Aur", "Mel", "Vin", "Cel", "Lys", "Ner", "Phil", "Cyr", "Thal", "Ost", "Har", "Zeph")
_MIDDLES = ("an", "er", "il", "or", "us", "yd", "am", "et")
_ENDS = ("elia", "issa", "andra", "onia", "ippe", "ara")
_EPITHETS = (
    *("punctata", "ocellata", "marginata", "fasciata", "pallida", "obscura", "vernalis", "montana"),
    *("gracilis", "caudata", "lunata", "venosa", "serrata", "aurata", "simplex", "littoralis"),
)


def genus(class_index: int) -> int:
    """Returns the number of the genus of a class; consecutive classes of a block belong to different genera."""
    block, position = divmod(class_index, GENERA * SPECIES)
    return block * GENERA + position % GENERA


def traits(class_index: int, seed: int = 0) -> Traits:
    """Returns the traits of one class: a number for each of ``TRAITS`` and, for each wing cell, 1 with a spot, else 0.

    They depend on ``seed`` and ``class_index`` alone. The species of a genus share its shape, palette and pattern up to
    small steps.
    """
    common = np.random.default_rng([seed, 1, genus(class_index)])
    specific = np.random.default_rng([seed, 2, class_index])
    low, high, step = np.array(list(TRAITS.values())).T
    share = common.random(len(TRAITS))
    hue = list(TRAITS).index("hue")
    share[hue] = (genus(class_index) % GENERA + share[hue]) / GENERA  # the genera of a block span all hues
    numbers = low + (high - low) * share + step * specific.integers(-1, 2, len(TRAITS))
    values = dict(zip(TRAITS, numbers.tolist(), strict=True))
    for wing, cells in CELLS.items():
        spots = common.random(cells) < 0.5
        spots[specific.permutation(cells)[:3]] ^= True  # three cells differ from the genus
        values |= {f"{wing}_spot_{cell}": float(spot) for cell, spot in enumerate(spots)}
    return values


def class_name(class_index: int) -> str:
    """Returns the made-up Latin name of a class, unique to it; the species of a genus share the first word."""
    number = genus(class_index)
    number, start = divmod(number, len(_STARTS))
    number, end = divmod(number, len(_ENDS))
    middle = ""
    while number:
        number, syllable = divmod(number - 1, len(_MIDDLES))
        middle += _MIDDLES[syllable]
    return f"{_STARTS[start]}{middle}{_ENDS[end]} {_EPITHETS[class_index // GENERA % SPECIES]}"
