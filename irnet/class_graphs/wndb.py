"""WordNet's nouns from its own database files (wndb(5WN)): index.noun, data.noun and noun.exc. Knows no classes.

A reader of its own, because the libraries do not open what people have: NLTK wants lexnames and index.sense, which
Debian's wordnet-base lacks, and a folder on its own data path; `wn` wants another format that it downloads.
"""

import os
import re
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError

DEFAULTS = ("/usr/share/wordnet", "~/nltk_data/corpora/wordnet", "/usr/share/nltk_data/corpora/wordnet")
INSIDE = ("", "dict", "corpora/wordnet", "wordnet")  # where the files may lie below the folder that is named
CURE = "give the folder of WordNet's data.noun (apt install wordnet-base: /usr/share/wordnet), or NLTK's wordnet.zip"
_ENDINGS = (("ches", "ch"), ("shes", "sh"), ("ses", "s"), ("xes", "x"), ("zes", "z"), ("ies", "y"), ("men", "man"))


@dataclass(frozen=True)
class Synset:
    """One set of synonyms.

    offset     its key, the byte at which it begins in data.noun
    lexfile    number of its lexicographer file, such as 6, artifacts; see lexnames(5WN)
    words      its synonyms, with underscores
    pointers   (symbol, offset) of the nouns that it points at: "@" hypernym, "@i" class of an instance, "%p" part
    gloss      what it means
    """

    offset: int
    lexfile: int
    words: tuple[str, ...]
    pointers: tuple[tuple[str, int], ...]
    gloss: str


class Nouns:
    """WordNet's nouns. InputError, saying where, for files that are not WordNet's."""

    def __init__(self, path: Path | None = None):
        self.path = _locate(path)
        self._data = _read(self.path, "data.noun")
        self._index: dict[str, str] = {}
        self._synsets: dict[int, Synset] = {}
        for line in _lines(_read(self.path, "index.noun")):
            self._index[line.partition(" ")[0]] = line
        self._exceptions: dict[str, list[str]] = {}
        for line in _lines(_read(self.path, "noun.exc", optional=True)):
            form, *bases = line.split() or [""]
            self._exceptions[form] = bases

    def senses(self, lemma: str) -> tuple[list[int], int]:
        """The offsets of a lemma's synsets, the most frequent first, and how many of them WordNet saw in tagged text.

        Args:
            lemma: In lower case, with underscores.

        Returns:
            Both; an empty list for a word that is no noun of WordNet's.

        Raises:
            InputError: The lemma's line in index.noun is malformed.
        """
        line = self._index.get(lemma)
        if line is None:
            return [], 0
        fields = line.split()
        try:
            # lemma pos synset_cnt p_cnt [ptr_symbol...] sense_cnt tagsense_cnt offset...
            count, pointers = int(fields[2]), int(fields[3])
            tagged, offsets = int(fields[5 + pointers]), [int(field) for field in fields[6 + pointers :]]
        except (ValueError, IndexError):
            count, tagged, offsets = -1, 0, []
        if count != len(offsets) or fields[1] != "n":
            raise InputError(self.path, f"index.noun: the line of {lemma!r} is malformed", CURE)
        return offsets, tagged

    def synset(self, offset: int) -> Synset:
        """The synset that begins at a byte of data.noun. InputError where none does."""
        if offset not in self._synsets:
            self._synsets[offset] = self._parse(offset)
        return self._synsets[offset]

    def _parse(self, offset: int) -> Synset:
        end = self._data.find(b"\n", offset)
        text, _, gloss = self._data[offset : end if end >= 0 else None].decode("utf-8", "replace").partition("|")
        fields = text.split()
        try:
            # offset lex_filenum ss_type w_cnt word lex_id [word lex_id...] p_cnt [ptr...]; w_cnt is hexadecimal
            words = int(fields[3], 16)
            begin = 5 + 2 * words
            pointers = int(fields[begin - 1])
            quads = [fields[begin + 4 * i : begin + 4 * i + 4] for i in range(pointers)]
            if int(fields[0]) != offset or len(fields) != begin + 4 * pointers or fields[2] != "n":
                raise ValueError
            nouns = tuple((symbol, int(target)) for symbol, target, pos, _ in quads if pos == "n")
            return Synset(offset, int(fields[1]), tuple(fields[4 : begin - 1 : 2]), nouns, gloss.strip())
        except (ValueError, IndexError):
            raise InputError(self.path, f"data.noun: no synset begins at byte {offset}", CURE) from None

    def lemma(self, name: str) -> str | None:
        """A class's name as WordNet has it: as it is, joined ("wine glass": wineglass) or singular; else None."""
        words = re.findall(r"[^\s_]+", name.casefold())
        for joined in ("_".join(words), "-".join(words), "".join(words)):
            for form in (joined, *self._exceptions.get(joined, ()), *_singulars(joined)):
                if form in self._index:
                    return form
        return None

    def key(self, lemma: str, offset: int) -> str:
        """The name of one sense of a lemma, such as toaster.n.02."""
        return f"{lemma}.n.{self.senses(lemma)[0].index(offset) + 1:02d}"

    def ancestors(self, offset: int) -> Iterator[int]:
        """Yield all synsets above the given one, the nearest first, without the given one itself."""
        seen, level = {offset}, [offset]
        while level:
            above = [target for o in level for symbol, target in self.synset(o).pointers if symbol in ("@", "@i")]
            level = [o for o in dict.fromkeys(above) if o not in seen]
            seen.update(level)
            yield from level


def _singulars(word: str) -> list[str]:
    forms = [word.removesuffix(ending) + base for ending, base in _ENDINGS if word.endswith(ending)]
    if word.endswith("s") and not word.endswith("ss"):
        forms.append(word[:-1])
    return forms


def _lines(content: bytes) -> Iterator[str]:
    """The lines of a file of WordNet's without those of its licence, which begin with a space."""
    return (line for line in content.decode("utf-8", "replace").splitlines() if not line.startswith(" "))


def _locate(path: Path | None) -> Path:
    """The folder, or the zip file, that holds data.noun."""
    roots = [path] if path is not None else [Path(os.path.expanduser(name)) for name in DEFAULTS]
    for root in roots:
        for inside in INSIDE:
            if (root / inside / "data.noun").is_file():
                return root / inside
        for archive in (root, root.with_suffix(".zip"), root / "wordnet.zip", root / "corpora/wordnet.zip"):
            if archive.suffix == ".zip" and archive.is_file():
                return archive
    trouble = "has no data.noun" if path is not None else f"is in none of {', '.join(DEFAULTS)}"
    raise InputError(path or "WordNet", trouble, CURE)


def _read(root: Path, name: str, optional: bool = False) -> bytes:
    try:
        if root.suffix != ".zip":
            return (root / name).read_bytes()
        with zipfile.ZipFile(root) as archive:
            inside = [member for member in archive.namelist() if member.rpartition("/")[2] == name]
            if inside:
                return archive.read(inside[0])
        raise FileNotFoundError(2, "No such file in the archive")
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        if optional and isinstance(error, FileNotFoundError):
            return b""
        raise InputError(root / name, f"cannot be read ({getattr(error, 'strerror', None) or error})", CURE) from None
