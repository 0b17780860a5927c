"""Word vectors of class names: GloVe's text, word2vec's text and binary; and a class graph of similar names."""

import gzip
import re
import zlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ..errors import InputError
from .combine import SIMILARITY, Relations, synset_lemma

CURE = "give GloVe's or word2vec's vectors: text (also .gz), `word number number ...` a line, or word2vec's binary"
WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")
LONGEST = CHUNK = 1 << 20  # bytes of a line, or of a word and its numbers; bytes that are read at once


@dataclass
class NameVectors:
    """Vectors of names.

    vectors   float32 [C, V], the mean over the words of each name that are in the file; zero where none is
    missing   by name, its words that the file lacks; names whose words are all there are not in it
    unknown   names of which no word is in the file
    """

    vectors: np.ndarray
    missing: dict[str, list[str]] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)

    def report(self) -> str:
        """What is missing, in one line; "" where nothing is."""
        if not self.missing:
            return ""
        words = sorted({word for words in self.missing.values() for word in words})
        shown = ", ".join(words[:10]) + (", ..." if len(words) > 10 else "")
        text = f"{len(words)} words of {len(self.missing)} names have no vector: {shown}"
        if self.unknown:
            shown = ", ".join(self.unknown[:10]) + (", ..." if len(self.unknown) > 10 else "")
            text += f"; {len(self.unknown)} names have none at all and get zeros: {shown}"
        return text


def name_vectors(path: Path, names: Sequence[str]) -> NameVectors:
    """Read the vectors of names, each the mean over its words, from a file of word vectors.

    A word is looked up as it is written, else in lower case. The file is read once, as a stream, and of it no more is
    kept than the rows of these words.

    Args:
        path: GloVe's or word2vec's text, also gzipped, or word2vec's binary, also gzipped.
        names: The names; words are parted by anything that is neither letter nor digit. Of "hot_dog.n.02" the words are
            hot and dog.

    Returns:
        The vectors, and what is missing.

    Raises:
        InputError: The file cannot be read or is malformed, or holds no word of any name.
    """
    words = {name: WORD.findall(synset_lemma(name) or name) for name in names}
    rows = read_rows(
        path, {form for own_words in words.values() for word in own_words for form in (word, word.lower())}
    )
    if not rows:
        raise InputError(path, f"holds no word of the {len(names)} names", CURE)
    result = NameVectors(np.zeros((len(names), len(next(iter(rows.values())))), dtype=np.float32))
    for i, name in enumerate(names):
        own_rows = [rows.get(word, rows.get(word.lower())) for word in words[name]]
        known = [row for row in own_rows if row is not None]
        if known:
            result.vectors[i] = np.mean(known, axis=0, dtype=np.float64)
        else:
            result.unknown.append(name)
        if len(known) < len(own_rows) or not own_rows:
            result.missing[name] = [word for word, row in zip(words[name], own_rows, strict=True) if row is None]
    return result


def relate_by_similarity(vectors: np.ndarray, neighbours: int = 5) -> Relations:
    """Edges to every class from the most similar others: weight is the cosine of their vectors, which is above 0.

    Args:
        vectors: float32 [C, V]; a row of zeros has no neighbours.
        neighbours: Edges to each class, at most.

    Returns:
        The relation ``similarity``.
    """
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    unit = np.divide(vectors, lengths, out=np.zeros(vectors.shape), where=lengths > 0)
    edges = {}
    for i in range(len(unit)):
        cosines = unit @ unit[i]
        cosines[i] = 0
        for j in np.argsort(-cosines, kind="stable")[:neighbours].tolist():
            if cosines[j] > 0:
                edges[j, i] = min(1.0, float(cosines[j]))
    return {SIMILARITY: edges}


# ---------------------------------------------------------------------------------------------------------- reading


def read_rows(path: Path, words: Collection[str]) -> dict[str, np.ndarray]:
    """The vectors of some words.

    Every line of a text is held to the number of columns; numbers are read in the lines of these words alone. Of a
    word that occurs twice the first row counts.

    Args:
        path: As of `name_vectors`.
        words: The words to look up.

    Returns:
        float32 [V] by word; words that are not in the file are not in it.

    Raises:
        InputError: The file cannot be read or is malformed; the line is named.
    """
    coded = {word.encode() for word in words}
    try:
        with path.open("rb") as raw:
            zipped = raw.read(2) == b"\x1f\x8b"
        with gzip.open(path) if zipped else path.open("rb") as file:
            first = _line(path, file, 1)
            header = first.split()
            if len(header) != 2 or not all(part.isdigit() for part in header):
                rows = _read_text(path, file, coded, first, 1)
            else:
                count, size = int(header[0]), int(header[1])
                rows = _read_counted(path, file, coded, count, size)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(path, f"cannot be read ({getattr(error, 'strerror', None) or error})", CURE) from None
    return {word.decode(): row for word, row in rows.items()}


def _line(path: Path, file: BinaryIO, number: int) -> bytes:
    line = file.readline(LONGEST)
    if len(line) == LONGEST:
        raise InputError(path, f"line {number} has no end", CURE)
    return line


def _read_counted(path: Path, file: BinaryIO, words: set[bytes], count: int, size: int) -> dict[bytes, np.ndarray]:
    """What follows a header `count size`: text, or word2vec's binary."""
    if not 0 < size <= LONGEST // 4 or not count:
        raise InputError(path, f"its header names {count} words of {size} numbers", CURE)
    begin = file.tell()
    text = not any(byte < 9 or 13 < byte < 32 for byte in file.read(4096))  # control characters are in no text
    file.seek(begin)
    if text:
        return _read_text(path, file, words, _line(path, file, 2), 2, size, count)
    return _read_binary(path, file, words, count, size)


def _read_text(
    path: Path, file: BinaryIO, words: set[bytes], line: bytes, number: int, size: int = 0, count: int = 0
) -> dict[bytes, np.ndarray]:
    """The rows of `words` in a text from `line` on, which is line `number`; size 0: that of the first line."""
    rows: dict[bytes, np.ndarray] = {}
    begin = number
    size = size or len(line.split()) - 1
    if size < 1:
        raise InputError(path, f"line {number} is no word with its numbers", CURE)
    while line:
        line = line.rstrip()
        if line:
            if line.count(b" ") == size and b"\t" not in line and b"  " not in line:  # as most are: the fastest way
                word = line.partition(b" ")[0]
            else:  # A word may hold spaces, as some of GloVe's do; any blanks stand between the columns.
                word, *columns = line.rsplit(None, size)
                if len(columns) < size:
                    raise InputError(path, f"line {number} has {len(columns)} numbers, not {size}", CURE)
            if word in words and word not in rows:
                rows[word] = _numbers(path, number, line.rsplit(None, size)[1:])
        number += 1
        line = _line(path, file, number)
    if count and number - begin < count:
        raise InputError(path, f"ends at line {number - 1}; its header names {count} words", CURE)
    return rows


def _numbers(path: Path, number: int, fields: list[bytes]) -> np.ndarray:
    try:
        row = np.array([float(text) for text in fields])
    except ValueError as error:
        raise InputError(path, f"line {number}: {error}", CURE) from None
    if not (abs(row) <= np.finfo(np.float32).max).all():  # false for NaN
        raise InputError(path, f"line {number} has a number that is not finite", CURE)
    return row.astype(np.float32)


def _read_binary(path: Path, file: BinaryIO, words: set[bytes], count: int, size: int) -> dict[bytes, np.ndarray]:
    """The rows of `words` in word2vec's binary: a word, a space, `size` float32, and in some files a line's end."""
    rows: dict[bytes, np.ndarray] = {}
    buffer, at, width = b"", 0, 4 * size
    for number in range(1, count + 1):
        while (space := buffer.find(b" ", at)) < 0 or len(buffer) <= space + width:
            chunk = file.read(CHUNK)
            if not chunk or len(buffer) - at > LONGEST + width:
                raise InputError(path, f"word {number} of {count} is cut off", CURE)
            buffer, at = buffer[at:] + chunk, 0
        word = buffer[at:space].lstrip(b"\n")
        if word in words and word not in rows:
            row = np.frombuffer(buffer, dtype="<f4", count=size, offset=space + 1).copy()
            if not np.isfinite(row).all():
                raise InputError(path, f"word {number}, {word.decode()!r}, has a number that is not finite", CURE)
            rows[word] = row
        at = space + 1 + width
    return rows
