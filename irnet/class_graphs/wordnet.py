"""A class graph from WordNet: hypernyms and part meronyms between the senses of the classes' names."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from .combine import KIND_OF, PART_OF, Relations, class_index, spoken, synset_lemma, with_inverse
from .wndb import Nouns

# Lexicographer files of what can be seen: Tops (person, animal, plant, food, ...), animal, artifact, body, food,
# object, plant, substance; and person.
THINGS = {3, 5, 6, 8, 13, 17, 20, 27}
PERSON = 18


@dataclass
class Senses:
    """The sense of each class's name: `offsets` and `keys` (toaster.n.02) by class, None where there is none."""

    offsets: list[int | None]
    keys: list[str | None]


def relate_by_wordnet(nouns: Nouns, senses: Senses) -> Relations:
    """Edges of weight 1 between classes, by one sense of each name.

    - ``is_kind_of`` from a class to the nearest classes above it, and its inverse ``has_kind``;
    - ``is_part_of`` from a part to every class that has it, itself or as a kind of something that has it (wheel is part
      of car, for a wheeled vehicle has wheels), and its inverse ``has_part``.

    Classes of one sense (couch, sofa) are tied to the same others, and not to each other.

    Args:
        nouns: WordNet.
        senses: As of `choose_senses`.

    Returns:
        The four relations.

    Raises:
        InputError: WordNet's files are malformed.
    """
    of: dict[int, list[int]] = {}
    for i, offset in enumerate(senses.offsets):
        if offset is not None:
            of.setdefault(offset, []).append(i)
    kinds, parts = [], []
    for i, offset in enumerate(senses.offsets):
        if offset is not None:
            kinds += [(i, j) for above in _nearest(nouns, offset, of) for j in of[above]]
            for whole in (offset, *nouns.ancestors(offset)):
                for symbol, part in nouns.synset(whole).pointers:
                    if symbol == "%p" and part != offset:
                        parts += [(j, i) for j in of.get(part, ())]
    return with_inverse(KIND_OF, kinds) | with_inverse(PART_OF, parts)


def _nearest(nouns: Nouns, offset: int, of: Mapping[int, object]) -> list[int]:
    """Return the hypernyms of a synset that are senses of classes, on each path upwards only the nearest."""
    nearest, seen, waiting = [], {offset}, [offset]
    while waiting:
        for symbol, above in nouns.synset(waiting.pop()).pointers:
            if symbol in ("@", "@i") and above not in seen:
                seen.add(above)
                (nearest if above in of else waiting).append(above)
    return nearest


# ------------------------------------------------------------------------------------------------------------ senses


def choose_senses(classes: Sequence[str], nouns: Nouns, given: Mapping[str, str | None]) -> Senses:
    """One sense for each name.

    1. A sense that is given by hand, or by a class's name, as Visual Genome's are: "toaster.n.02".
    2. Else of the senses that can be seen (things and persons by their lexicographer files) the most frequent; but a
       person only where WordNet has seen that sense in text, for of senses never seen the order says nothing: a toaster
       is an appliance, who proposes a toast comes first in the dictionary. Where none can be seen, the most frequent.
    3. A name whose sense no class is a kind of takes that visible sense of its own which most classes' senses are kinds
       of, if there is one: with donut among the classes, cake is the food and not a cake of soap.

    Args:
        classes: Names of the classes.
        nouns: WordNet.
        given: Senses by hand, by class name; None: no sense, the name stays out.

    Returns:
        The senses; None for names that WordNet lacks.

    Raises:
        InputError: A given name is no class, or a given sense does not exist.
    """
    index, known = class_index(classes), {}
    by_hand = {spoken(name) for name in given}
    for i, name in enumerate(classes):
        if synset_lemma(name) and spoken(name) not in by_hand:
            known[i] = (name, _offset(nouns, name, name))
    for name, key in given.items():
        if spoken(name) not in index:
            raise InputError("--sense", f"{name!r} is no class", f"name one of the classes, such as {classes[0]!r}")
        known[index[spoken(name)]] = None if key is None else (key, _offset(nouns, name, key))
    lemmas = [None if i in known else nouns.lemma(name) for i, name in enumerate(classes)]
    chosen: list[int | None] = []
    for i, lemma in enumerate(lemmas):
        own = known.get(i)
        chosen.append(own[1] if own else None if lemma is None else _usual(nouns, lemma))
    votes = Counter(above for offset in chosen if offset is not None for above in nouns.ancestors(offset))
    for i, lemma in enumerate(lemmas):
        if lemma is not None and not votes[chosen[i]]:
            visible = [o for o in nouns.senses(lemma)[0] if nouns.synset(o).lexfile in {*THINGS, PERSON}]
            best = max(visible, key=lambda offset: votes[offset], default=None)  # the first of the largest
            if best is not None and votes[best]:
                chosen[i] = best
    keys: list[str | None] = []
    for i, (lemma, offset) in enumerate(zip(lemmas, chosen, strict=True)):
        own = known.get(i)
        keys.append(own[0] if own else None if lemma is None or offset is None else nouns.key(lemma, offset))
    return Senses(chosen, keys)


def _usual(nouns: Nouns, lemma: str) -> int:
    offsets, tagged = nouns.senses(lemma)
    files = [nouns.synset(offset).lexfile for offset in offsets]
    for i, (offset, file) in enumerate(zip(offsets, files, strict=True)):
        if file in THINGS or (file == PERSON and i < tagged):
            return offset
    for lexfiles in ({PERSON}, set(files)):
        for offset, file in zip(offsets, files, strict=True):
            if file in lexfiles:
                return offset
    raise InputError(nouns.path, f"index.noun: {lemma!r} has no sense", "take another copy of WordNet")


def _offset(nouns: Nouns, name: str, key: str) -> int:
    lemma, _, number = key.casefold().replace(" ", "_").rpartition(".n.")
    offsets = nouns.senses(lemma)[0]
    if not number.isdecimal() or not 1 <= int(number) <= len(offsets):
        senses = [f"{lemma}.n.{i:02d} ({nouns.synset(o).gloss[:40]})" for i, o in enumerate(offsets[:4], 1)]
        cure = f"give one of {', '.join(senses)}" if senses else "write it as lemma.n.number, such as toaster.n.02"
        raise InputError("--sense", f"WordNet has no sense {key!r} for {name!r}", cure)
    return offsets[int(number) - 1]


def read_senses(words: Sequence[str]) -> dict[str, str | None]:
    """Senses by hand, as the command line gives them.

    Args:
        words: Each "NAME=lemma.n.number" ("NAME=none": no sense), or a file with one of these a line; what stands
            behind "#" is a comment. The later of two counts.

    Returns:
        The sense of each name.

    Raises:
        InputError: A word is neither, or a line is malformed.
    """
    senses: dict[str, str | None] = {}
    for word in words:
        lines = [("--sense", word)]
        if "=" not in word:
            try:
                text = Path(word).read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                reason = getattr(error, "strerror", None) or error
                cure = "give NAME=lemma.n.number, such as toaster=toaster.n.02, or a file of such lines"
                raise InputError(word, f"cannot be read ({reason})", cure) from None
            stripped = [line.partition("#")[0].strip() for line in text.splitlines()]
            lines = [(f"{word}, line {n}", line) for n, line in enumerate(stripped, 1) if line]
        for where, line in lines:
            name, equals, key = (part.strip() for part in line.partition("="))
            if not name or not equals or not key:
                raise InputError(where, f"{line!r} names no sense", "write NAME=lemma.n.number, or NAME=none")
            senses[name] = None if key == "none" else key
    return senses


def senses_text(classes: Sequence[str], nouns: Nouns, senses: Senses) -> str:
    """The senses in the form that `read_senses` takes, each with what it means."""
    lines = []
    for name, offset, key in zip(classes, senses.offsets, senses.keys, strict=True):
        lines.append(f"{name}=none" if offset is None else f"{name}={key}  # {nouns.synset(offset).gloss}")
    return "\n".join(lines) + "\n"
