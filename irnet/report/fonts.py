"""The font of pictures: DejaVu, which comes with matplotlib, or an installed font that has more of the letters."""

import contextlib
import functools
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from matplotlib.font_manager import findSystemFonts
from matplotlib.ft2font import FT2Font
from PIL import ImageFont

DEJAVU = Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"


@dataclass(frozen=True)
class Typeface:
    """A font file, of which the first face is taken, and the letters it has."""

    path: str
    letters: frozenset[str]

    def font(self, size: int) -> ImageFont.FreeTypeFont:
        return _load(self.path, size)

    def has(self, text: str) -> bool:
        return self.letters.issuperset(text)

    def plain(self, text: str) -> str:
        """`text` in letters of this font: accents it lacks are dropped, any other letter becomes "?"."""
        text = unicodedata.normalize("NFC", " ".join(text.split()))
        if self.has(text):
            return text
        parts = "".join(c if c in self.letters else unicodedata.normalize("NFKD", c) for c in text)
        return "".join(c if c in self.letters else "?" for c in parts if not unicodedata.combining(c))

    def names(self, classes: list[str]) -> list[str]:
        """The classes as this font can write them; one that it cannot is told by its number, too."""
        plain = [self.plain(name) for name in classes]
        return [
            f"{name} (class {i})" if "?" in name and "?" not in classes[i] else name for i, name in enumerate(plain)
        ]


def typeface(texts: list[str]) -> Typeface:
    """DejaVu if it has every letter of `texts`, else the font of this system that has most of them."""
    return _typeface(frozenset(unicodedata.normalize("NFC", "".join(texts))) - frozenset("\t\n\r"))


@functools.lru_cache(maxsize=16)
def _typeface(letters: frozenset[str]) -> Typeface:
    own = _read(DEJAVU)
    if own.letters >= letters:
        return own
    digits = frozenset("0123456789.%")  # which every picture needs
    return max((own, *(face for face in installed() if face.letters >= digits)), key=lambda f: len(f.letters & letters))


@functools.lru_cache(maxsize=1)
def installed() -> tuple[Typeface, ...]:
    """The fonts of this system that matplotlib finds and can read."""
    faces = []
    for path in sorted(findSystemFonts()):
        with contextlib.suppress(RuntimeError):  # FreeType's word for a damaged file
            faces.append(_read(path))
    return tuple(faces)


def _read(path: str | Path) -> Typeface:
    return Typeface(str(path), frozenset(map(chr, FT2Font(path).get_charmap())))


@functools.lru_cache(maxsize=64)
def _load(path: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, size)
