"""Fonts of pictures: DejaVu, or a font of the system for letters that it lacks, such as Chinese ones."""

from functools import cache
from pathlib import Path

import matplotlib
from matplotlib.font_manager import findSystemFonts
from matplotlib.ft2font import FT2Font
from PIL import ImageFont

# It has the letters of most alphabets; the font that Pillow includes lacks even those of German.
DEFAULT = str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"))


def font_for(text: str, size: int) -> ImageFont.FreeTypeFont:
    """The font that has most letters of a text, the default one if others have no more.

    Args:
        text: One line.
        size: In pixels.
    """
    letters = frozenset(map(ord, "".join(text.split())))
    path = DEFAULT if letters <= _letters_of(DEFAULT) else _best_font(letters, size)
    return _load(path, size) or ImageFont.truetype(DEFAULT, size)


@cache
def _best_font(letters: frozenset[int], size: int) -> str:
    best = DEFAULT
    for path in _system_fonts():
        if len(letters & _letters_of(path)) > len(letters & _letters_of(best)) and _load(path, size):
            best = path
    return best


@cache
def _system_fonts() -> list[str]:
    return sorted(findSystemFonts())


@cache
def _letters_of(path: str) -> frozenset[int]:
    try:
        return frozenset(FT2Font(path).get_charmap())
    except RuntimeError:  # not a font that FreeType reads
        return frozenset()


@cache
def _load(path: str, size: int) -> ImageFont.FreeTypeFont | None:
    try:
        return ImageFont.truetype(path, size)
    except OSError:  # such as a font of emoji, which has bitmaps of one size
        return None
