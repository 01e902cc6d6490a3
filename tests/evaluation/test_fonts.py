"""Fonts of pictures for letters that the default font lacks."""

from pathlib import Path

import matplotlib
import pytest

from hgsl.evaluation.show import fonts

TTF = Path(matplotlib.get_data_path(), "fonts/ttf")


def test_letters_that_the_default_font_lacks_are_drawn_with_a_font_of_the_system(monkeypatch, tmp_path):
    monkeypatch.setattr(fonts, "_best_font", fonts._best_font.__wrapped__)
    (tmp_path / "bitmaps.ttf").write_bytes(b"no font")
    system = [str(tmp_path / "bitmaps.ttf"), str(TTF / "cmtt10.ttf"), str(TTF / "STIXNonUni.ttf")]
    monkeypatch.setattr(fonts, "_system_fonts", lambda: system)
    letter = chr(min(fonts._letters_of(system[2]) - fonts._letters_of(fonts.DEFAULT) - fonts._letters_of(system[1])))
    assert fonts.font_for(letter, 13).path == system[2]
    assert fonts.font_for("0.998  Ähre", 13).path == fonts.DEFAULT
    unassigned = "\U000e0fff"
    assert fonts.font_for(unassigned, 13).path == fonts.DEFAULT


def test_a_font_of_another_size_only_is_left_out():
    assert fonts._load("/nowhere.ttf", 13) is None


@pytest.mark.parametrize("text", ["", "a\tb"])
def test_whitespace_needs_no_letters(text):
    assert fonts.font_for(text, 13).path == fonts.DEFAULT
