"""The font of pictures: DejaVu, which comes with matplotlib, or an installed font that has more of the letters."""

import functools
import subprocess
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from matplotlib.ft2font import FT2Font
from PIL import ImageFont

DEJAVU = Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"
_LISTING = ["fc-list", "--format", "%{file}\t%{index}\t%{charset}\n"]


@dataclass(frozen=True)
class Typeface:
    """A font file, the number of the face in it, and the letters it has."""

    path: str
    index: int
    letters: frozenset[str]

    def font(self, size: int) -> ImageFont.FreeTypeFont:
        return _load(self.path, self.index, size)

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
    own = Typeface(str(DEJAVU), 0, frozenset(map(chr, FT2Font(DEJAVU).get_charmap())))
    if own.letters >= letters:
        return own
    digits = frozenset("0123456789.%")  # which every picture needs
    return max((own, *(face for face in installed() if face.letters >= digits)), key=lambda f: len(f.letters & letters))


@functools.lru_cache(maxsize=1)
def installed() -> tuple[Typeface, ...]:
    """The fonts that fontconfig knows; none where it is not installed."""
    try:
        lines = subprocess.run(_LISTING, capture_output=True, text=True, errors="replace").stdout.splitlines()
    except OSError:
        return ()
    faces = []
    for path, index, ranges in (line.split("\t") for line in sorted(lines) if line.count("\t") == 2):
        letters: set[str] = set()
        for part in ranges.split():
            first, _, last = part.partition("-")
            letters.update(map(chr, range(int(first, 16), int(last or first, 16) + 1)))
        if Path(path).suffix.lower() in (".ttf", ".otf", ".ttc"):  # not bitmap fonts, which have one size
            faces.append(Typeface(path, int(index) & 0xFFFF, frozenset(letters)))
    return tuple(faces)


@functools.lru_cache(maxsize=64)
def _load(path: str, index: int, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, size, index=index)
