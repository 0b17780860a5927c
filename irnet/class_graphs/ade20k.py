"""A class graph from ADE20K's own annotations, 2016 and 2021: which object is part of which, and hypernyms.

Of the pictures only the masks of the 2016 release are opened.
"""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import InputError
from ..progress import tracked
from .combine import HAS_PART, KIND_OF, PART_OF, Relations, class_index, shares, spoken, with_inverse

CURE = "give the folder of an ADE20K release as it was published"


@dataclass(frozen=True)
class AnnotatedObject:
    """One object of an image.

    raw_name    the annotator's word, by which classes are named
    name        the synset's words, "car, auto, automobile, machine, motorcar"
    hypernyms   synsets' words from its own to "entity"; empty where ADE20K gives none, as for parts
    whole       the object that this one is a part of, as (raw_name, name), or None
    """

    raw_name: str
    name: str
    hypernyms: tuple[str, ...]
    whole: tuple[str, str] | None


def relate_by_ade20k(
    classes: Sequence[str], root: Path, least: int = 1, images: Collection[str] | None = None
) -> Relations:
    """Parts and kinds as ADE20K's annotators gave them.

    - ``is_part_of``: the weight is the share of dst's annotated parts that are of class src; ``has_part``, its inverse:
      of all that dst's objects are parts of, the share that is of class src;
    - ``is_kind_of``: weight 1, from a class to the nearest class among its hypernyms, and its inverse ``has_kind``. A
      class stands for the synset that most of its objects have; one without objects, for a synset that it is the
      first word of. Only the 2021 release has hypernyms.

    Args:
        classes: Names of the classes: raw names, or synsets' words.
        root: Folder of a release; annotations are looked for below it, those of folders named validation left out.
        least: Pairs of part and whole that were seen fewer times are left out.
        images: Names of the images that count, without their endings; None: all that are no validation images.

    Returns:
        The four relations.

    Raises:
        InputError: There is no annotation, or one that cannot be read.
    """
    index = class_index(classes)
    parts: Counter[tuple[int, int]] = Counter()
    synsets: dict[int, Counter[tuple[str, ...]]] = defaultdict(Counter)
    for objects in read_annotations(root, images):
        for one in objects:
            i = _class_of(one.raw_name, one.name, index)
            if i is not None and one.hypernyms:
                synsets[i][one.hypernyms] += 1
            whole = None if one.whole is None else _class_of(*one.whole, index)
            if i is not None and whole is not None and i != whole:
                parts[i, whole] += 1
    chains = {i: counts.most_common(1)[0][0] for i, counts in synsets.items()}
    inverse = Counter({(dst, src): count for (src, dst), count in parts.items()})
    return with_inverse(KIND_OF, _kinds(chains, index)) | {
        PART_OF: shares(parts, least),
        HAS_PART: shares(inverse, least),
    }


def _class_of(raw_name: str, name: str, index: dict[str, int]) -> int | None:
    return index.get(spoken(raw_name), index.get(spoken(name)))


def _kinds(chains: dict[int, tuple[str, ...]], index: dict[str, int]) -> Iterator[tuple[int, int]]:
    """(class, nearest class above it), by the hypernyms of each class, its own synset first."""
    of: dict[str, list[int]] = defaultdict(list)
    for i, chain in chains.items():
        of[chain[0]].append(i)
    for i, chain in chains.items():
        for above in chain[1:]:
            unseen = index.get(spoken(above.partition(",")[0]), i)
            found = of.get(above, [] if unseen in chains else [unseen])
            if found:
                yield from ((i, j) for j in found)
                break


# ---------------------------------------------------------------------------------------------------------- reading


def read_annotations(root: Path, images: Collection[str] | None = None) -> Iterator[list[AnnotatedObject]]:
    """The objects of every image, as `relate_by_ade20k` takes them.

    Args:
        root: Folder of a release.
        images: Names of the images that count; None: all that are no validation images.

    Yields:
        The objects of one image, parts among them.

    Raises:
        InputError: There is no annotation, or one that cannot be read.
    """
    for pattern, ending, read in ("ADE_*.json", ".json", _read_2021), ("ADE_*_atr.txt", "_atr.txt", _read_2016):
        paths = sorted(root.rglob(pattern))
        if images is None:
            kept = [path for path in paths if "validation" not in path.relative_to(root).parts]
        else:
            kept = [path for path in paths if path.name.removesuffix(ending) in images]
        if kept:
            for path in tracked(kept, "annotations of ADE20K", "image"):
                yield read(path)
            return
        if paths:
            raise InputError(root, f"none of its {len(paths)} annotated images is one to learn from", CURE)
    raise InputError(root, "holds neither ADE_*.json (2021) nor ADE_*_atr.txt (2016)", CURE)


def _text(path: Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(path, f"cannot be read ({error.strerror})", CURE) from None
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return content.decode("latin-1")  # as some files of both releases are written


def _read_2021(path: Path) -> list[AnnotatedObject]:
    try:
        rows = json.loads(_text(path))["annotation"]["object"]
        rows = [rows] if isinstance(rows, dict) else rows  # an image with one object
        names = {row["id"]: (row["raw_name"], row["name"]) for row in rows}
        objects = []
        for row in rows:
            part_of = row["parts"]["ispartof"]  # a number, or []
            words = (row["raw_name"], row["name"], *row["hypernym"])
            if not all(isinstance(word, str) for word in words):
                raise TypeError(f"a name of object {row['id']} is no text")
            whole = None if part_of == [] else names[part_of]
            objects.append(AnnotatedObject(words[0], words[1], words[2:], whole))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(path, f"is no annotation of ADE20K 2021 ({type(error).__name__}: {error})", CURE) from None
    return objects


def _read_2016(path: Path) -> list[AnnotatedObject]:
    """The objects of an ..._atr.txt, whose lines are `number # level # occluded # name # raw name # "attributes"`.

    A number counts within its level; level 0 are objects, level 1 their parts, level 2 parts of these.
    """
    rows: dict[tuple[int, int], tuple[str, str]] = {}
    for number, line in enumerate(_text(path).splitlines(), 1):
        fields = [field.strip() for field in re.split(r"\s#\s?", line, maxsplit=5)]
        if line.strip():
            if len(fields) != 6 or not fields[0].isdecimal() or not fields[1].isdecimal():
                trouble = f"line {number} is not `number # level # occluded # name # raw name # attributes`"
                raise InputError(path, trouble, CURE)
            rows[int(fields[1]), int(fields[0])] = (fields[4], fields[3])
    whole_of = {part: rows[whole] for part, whole in _wholes(path, rows)}
    return [AnnotatedObject(raw, name, (), whole_of.get(key)) for key, (raw, name) in rows.items()]


def _wholes(path: Path, rows: Collection[tuple[int, int]]) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """(part, whole), each (level, number): the whole is the object of the level below under most pixels of the part."""
    stem, below = path.name.removesuffix("_atr.txt"), None
    levels = {level for level, _ in rows}
    for level in range(max(levels) + 1 if levels - {0} else 0):
        mask = path.with_name(f"{stem}_seg.png" if level == 0 else f"{stem}_parts_{level}.png")
        try:
            values = np.asarray(Image.open(mask).convert("RGB"))[..., 2].astype(np.int64)
        except (OSError, ValueError) as error:
            raise InputError(mask, f"cannot be read ({getattr(error, 'strerror', None) or error})", CURE) from None
        numbers = _numbers(sorted(number for at, number in rows if at == level))
        if below is not None:
            if below[0].shape != values.shape:
                raise InputError(mask, "differs in size from the mask of the level below", CURE)
            yield from _overlaps(level, values, numbers, *below)
        below = values, numbers


def _overlaps(
    level: int, values: np.ndarray, numbers: dict[int, int], under: np.ndarray, under_numbers: dict[int, int]
) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    both = (values > 0) & (under > 0)
    pairs, counts = np.unique(values[both] * 256 + under[both], return_counts=True)
    for pair in pairs[np.argsort(counts, kind="stable")].tolist():  # the most frequent last: it stays in the dict
        part, whole = divmod(pair, 256)
        if part in numbers and whole in under_numbers:
            yield (level, numbers[part]), (level - 1, under_numbers[whole])


def _numbers(numbers: list[int]) -> dict[int, int]:
    """The number of the object that each value of a mask's blue channel shows; 0 shows none.

    Object j of n has the value floor(255 j / n + 0.5). Its rank among the values that occur is another wherever an
    object is hidden, and the rank among all of them wherever no pixel is background.
    """
    n = len(numbers)
    if not 0 < n <= 255:  # beyond 255 several objects share a value
        return {}
    return {int(255 * j / n + 0.5): number for j, number in enumerate(numbers, 1)}
