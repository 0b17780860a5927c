"""A class graph from Visual Genome's relationships.json, one relation per predicate. Opens no image."""

import contextlib
import functools
import gzip
import io
import json
import re
import zipfile
import zlib
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError
from .combine import Relations, class_index, shares, spoken

CURE = "give Visual Genome's relationships.json as it was published, or fetch it again"
CHUNK = 1 << 20  # characters
MOST = 1 << 26  # characters of one image's relationships
_BETWEEN = re.compile(r"[\s,]*")


def relate_by_predicates(
    classes: Sequence[str],
    path: Path,
    predicates: int = 20,
    least: int = 1,
    images: Collection[str] | None = None,
) -> Relations:
    """Edges from subject to object, a relation for each of the most frequent predicates between two classes.

    The weight is the share of dst's subjects under this predicate that are of class src. Predicates that differ in
    capitals, articles, a leading "is" or the form of the first word ("ON", "on the", "is on"; "WEARING", "wears") are
    one, named by its most frequent spelling; synsets do not tell them apart: "ON" shares along.r.01 with "parked on".
    An end is of the first of its names that is a class (`names` where objects were merged, else `name`), else of the
    first of its synsets that is one.

    Args:
        classes: Names of the classes.
        path: relationships.json, also as .gz or .zip, or the folder that holds it.
        predicates: How many predicates to take.
        least: Edges seen fewer times are left out.
        images: Ids of the images that count, such as the training images; None: all.

    Returns:
        The relations, the most frequent first.

    Raises:
        InputError: The file cannot be read or is not of the format.
    """
    index = class_index(classes)
    spellings: dict[str, Counter[str]] = defaultdict(Counter)
    edges: dict[str, Counter[tuple[int, int]]] = defaultdict(Counter)
    for predicate, subject, target in read_relationships(path, images):
        src, dst = _class_of(subject, index), _class_of(target, index)
        if src is not None and dst is not None and src != dst:
            key = predicate_key(predicate)
            spellings[key][spoken(predicate)] += 1
            edges[key][src, dst] += 1
    edges.pop("", None)  # relationships without a predicate
    frequent = sorted(edges, key=lambda key: (-edges[key].total(), key))[:predicates]
    names = {key: min(spellings[key].items(), key=lambda item: (-item[1], item[0]))[0] for key in frequent}
    return {names[key]: shares(edges[key], least) for key in frequent}


def _class_of(end: dict[str, Any], index: dict[str, int]) -> int | None:
    names = end["names"] if "names" in end else [end["name"]]
    for name in (*names, *end.get("synsets", ())):
        if (i := index.get(spoken(name))) is not None:
            return i
    return None


# ------------------------------------------------------------------------------------------------------- predicates

_ARTICLES = {"a", "an", "the"}
_FORMS = {"has": "hav", "is": "be", "are": "be", "being": "be", "does": "do", "doing": "do"}
_FORMS |= {"goes": "go", "use": "us", "uses": "us", "lie": "ly", "lies": "ly", "tie": "ty", "ties": "ty"}


@functools.lru_cache(maxsize=1 << 16)  # Visual Genome has some 36,000 spellings
def predicate_key(predicate: str) -> str:
    """What spellings of one predicate share: "WEARING", "wears" and "is wearing a" have one key."""
    words = [word for word in re.findall(r"[^\W_]+", predicate.casefold()) if word not in _ARTICLES]
    if len(words) > 1 and words[0] in ("is", "are"):
        words = words[1:]
    return " ".join([_stem(words[0]), *words[1:]]) if words else ""


def _stem(word: str) -> str:
    """A verb without -ing, -s, a final -e and a doubled consonant."""
    if word in _FORMS:
        return _FORMS[word]
    if word.endswith("ing") and re.search("[aeiouy]", word[:-3]):  # using; but bring, string
        word = word[:-3]
        if word[-1:] == word[-2:-1] and word[-1] not in "aeiouls":  # sitting; but pulling, passing
            word = word[:-1]
    elif word.endswith("ies") and len(word) > 4:
        word = word[:-3] + "y"
    elif word.endswith(("shes", "ches", "sses", "xes")):
        word = word[:-2]
    elif word.endswith("s") and not word.endswith("ss") and len(word) > 3:
        word = word[:-1]
    return word.removesuffix("e") if len(word) > 3 else word


# ---------------------------------------------------------------------------------------------------------- reading


def read_relationships(
    path: Path, images: Collection[str] | None = None
) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """(predicate, subject, object) of all relationships, image by image; the file is never in memory as a whole.

    Args:
        path: As of `relate_by_predicates`.
        images: Ids of the images that count; None: all.

    Yields:
        The predicate as it is spelled, and both ends, each with `name` or `names`, all of them text.

    Raises:
        InputError: The file cannot be read or is not of the format.
    """
    if path.is_dir():
        candidates = [path / name for name in ("relationships.json", "relationships.json.zip", "relationships.json.gz")]
        path = next((file for file in candidates if file.exists()), candidates[0])
    for number, image in enumerate(_images(path)):
        relationships, where = None, f"entry {number}"
        if isinstance(image, dict):
            own = image.get("image_id", image.get("id", number))  # version 1.0 has `id`
            if images is not None and str(own) not in images:
                continue
            relationships, where = image.get("relationships"), f"image {own}"
        if not isinstance(relationships, list):
            raise InputError(path, f"{where} has no list of relationships", CURE)
        for i, one in enumerate(relationships):
            ends = [one.get("subject"), one.get("object")] if isinstance(one, dict) else []
            if not ends or not isinstance(one.get("predicate"), str) or not all(map(_is_end, ends)):
                trouble = f"relationship {i} of {where} has no predicate, or an end without a name"
                raise InputError(path, trouble, CURE)
            yield one["predicate"], ends[0], ends[1]


def _is_end(end: object) -> bool:
    if not isinstance(end, dict):
        return False
    names, synsets = end.get("names", [end.get("name")]), end.get("synsets", [])
    lists = isinstance(names, list) and isinstance(synsets, list)
    return lists and all(isinstance(name, str) for name in (*names, *synsets))


def _images(path: Path) -> Iterator[object]:
    """The entries of a JSON file that is one list, decoded one by one."""
    decoder, number = json.JSONDecoder(), 0
    with _opened(path) as file:
        text = file.read(max(CHUNK, 3)).lstrip("\ufeff")
        while text.isspace():
            text = file.read(CHUNK)
        at = _BETWEEN.match(text).end()
        if text and not text.startswith("[", at):
            raise InputError(path, "is no JSON list", CURE)
        at += 1
        while True:
            at = _BETWEEN.match(text, at).end()
            if text.startswith("]", at):
                return
            try:
                entry, at = decoder.raw_decode(text, at)
            except (ValueError, RecursionError) as error:
                rest = text[at:]
                chunk = file.read(max(CHUNK, len(rest))) if len(rest) < MOST else ""
                if not chunk:
                    reason = error.msg if isinstance(error, json.JSONDecodeError) else error
                    raise InputError(path, f"not valid JSON in entry {number} ({reason})", CURE) from None
                text, at = rest + chunk, 0
                continue
            yield entry
            number += 1


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[io.TextIOBase]:
    with contextlib.ExitStack() as stack:
        try:
            if path.suffix == ".zip":
                archive = stack.enter_context(zipfile.ZipFile(path))
                inside = [name for name in archive.namelist() if name.endswith(".json")]
                if len(inside) != 1:
                    raise InputError(path, f"holds {len(inside)} JSON files, not one", CURE)
                raw: Any = stack.enter_context(archive.open(inside[0]))
            elif path.suffix == ".gz":
                raw = stack.enter_context(gzip.open(path))
            else:
                raw = stack.enter_context(path.open("rb"))
            yield io.TextIOWrapper(raw, encoding="utf-8")
        except (OSError, EOFError, UnicodeDecodeError, zipfile.BadZipFile, zlib.error) as error:
            raise InputError(path, f"cannot be read ({getattr(error, 'strerror', None) or error})", CURE) from None
