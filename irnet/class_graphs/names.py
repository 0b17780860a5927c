"""A class graph from names alone: left and right of a pair, singular and plural of a word."""

from collections.abc import Sequence

from ..data.transforms import left_right_swap
from .combine import LEFT_RIGHT, PLURAL, Relations, class_index, spoken

IRREGULAR = {
    "calf": "calves",
    "child": "children",
    "foot": "feet",
    "goose": "geese",
    "half": "halves",
    "knife": "knives",
    "leaf": "leaves",
    "life": "lives",
    "loaf": "loaves",
    "louse": "lice",
    "man": "men",
    "mouse": "mice",
    "ox": "oxen",
    "person": "people",
    "scarf": "scarves",
    "sheaf": "sheaves",
    "shelf": "shelves",
    "thief": "thieves",
    "tooth": "teeth",
    "wife": "wives",
    "wolf": "wolves",
}


def relate_names(classes: Sequence[str]) -> Relations:
    """Edges both ways, weight 1, between classes that are a pair, or one and many.

    - ``left_right``: names that swap when a picture is mirrored (see `irnet.data.transforms.left_right_swap`);
    - ``plural``: "car" and "cars", "box" and "boxes", "man" and "men"; in names of several words the last word, or the
      one before "of", is in the plural ("glass of wine", "glasses of wine").
    """
    mirrored: dict[tuple[int, int], float] = {
        (i, other): 1.0 for i, other in enumerate(left_right_swap(classes).tolist()) if other != i
    }
    index, plural = class_index(classes), {}
    for i, name in enumerate(classes):
        for form in plural_forms(spoken(name)):
            other = index.get(form, i)
            if other != i:
                plural[i, other] = plural[other, i] = 1.0
    return {PLURAL: plural, LEFT_RIGHT: mirrored}


def plural_forms(name: str) -> list[str]:
    """The plural forms that a name in lower case may have; the plural of a plural is none."""
    head, of, rest = name.partition(" of ")
    begin, space, word = head.rpartition(" ")
    return [f"{begin}{space}{form}{of}{rest}" for form in _plurals(word)]


def _plurals(word: str) -> list[str]:
    for singular, plural in IRREGULAR.items():
        # Whole, or as the end of a compound whose plural goes with it: fireman, bookshelf, eyetooth.
        if word == singular or (word.endswith(singular) and singular not in ("ox", "half") and word not in _REGULAR):
            return [word.removesuffix(singular) + plural]
    if word.endswith(("s", "x", "z", "ch", "sh")):
        return [word + "es"]
    if word.endswith("y") and word[-2:-1] not in ("", *"aeiou"):
        return [word[:-1] + "ies"]
    if word.endswith("o"):
        return [word + "s", word + "es"]
    return [word + "s"] if word else []


_REGULAR = {"human", "german", "roman", "talisman", "ottoman", "caiman", "shaman", "mongoose"}
