"""Fonts of pictures: letters beyond Latin come from DejaVu or an installed font; else the class's number is told."""

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen

from irnet.report import fonts
from irnet.report.fonts import Typeface, typeface


@pytest.fixture(autouse=True)
def fresh():
    for function in (fonts._typeface, fonts.installed):
        function.cache_clear()
    yield
    for function in (fonts._typeface, fonts.installed):
        function.cache_clear()


def make_font(path, letters):
    """A font whose every letter is a box."""
    pen = TTGlyphPen(None)
    for i, point in enumerate([(50, 0), (50, 700), (450, 700), (450, 0)]):
        (pen.lineTo if i else pen.moveTo)(point)
    pen.closePath()
    box, names = pen.glyph(), [".notdef", "box"]
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap({ord(letter): "box" for letter in letters})
    builder.setupGlyf(dict.fromkeys(names, box))
    builder.setupHorizontalMetrics(dict.fromkeys(names, (500, 50)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": "Boxes", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)
    return Typeface(str(path), frozenset(letters))


@pytest.mark.parametrize("name", ["cup", "café", "Straße", "чашка", "κύπελλο", "fincan ğış", "a" + "\u0301"])
def test_dejavu_writes_latin_greek_and_cyrillic(name):
    face = typeface([name])
    assert face.path == str(fonts.DEJAVU) and "?" not in face.plain(name)
    assert face.names([name]) == [face.plain(name)]


def test_an_installed_font_that_has_the_letters_is_taken(tmp_path, monkeypatch):
    ascii_letters = "".join(map(chr, range(32, 127)))
    some = make_font(tmp_path / "some.ttf", ascii_letters + "茶")
    most = make_font(tmp_path / "most.ttf", ascii_letters + "茶杯狗")
    no_digits = make_font(tmp_path / "no_digits.ttf", "茶杯狗猫")
    monkeypatch.setattr(fonts, "installed", lambda: (some, most, no_digits))
    monkeypatch.setattr(fonts.installed, "cache_clear", lambda: None, raising=False)
    face = typeface(["茶杯", "狗", "😀"])
    assert face == most
    assert face.names(["茶杯", "😀", "cup"]) == ["茶杯", "? (class 1)", "cup"]
    image = np.asarray(face.font(20).getmask("茶"))
    assert image.any()


def test_without_such_a_font_the_number_is_told(monkeypatch):
    monkeypatch.setattr(fonts, "findSystemFonts", list)
    face = typeface(["茶杯", "狗"])
    assert face.path == str(fonts.DEJAVU)
    assert face.names(["茶杯", "狗", "what?"]) == ["?? (class 0)", "? (class 1)", "what?"]


def test_installed_fonts_are_read_but_for_damaged_ones(monkeypatch, tmp_path):
    one, other = make_font(tmp_path / "a.ttf", "A!"), make_font(tmp_path / "c.otf", "茶")
    (tmp_path / "b.ttf").write_bytes(b"no font")
    monkeypatch.setattr(fonts, "findSystemFonts", lambda: [other.path, str(tmp_path / "b.ttf"), one.path])
    assert fonts.installed() == (one, other)
