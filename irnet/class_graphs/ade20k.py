"""A class graph from ADE20K's own annotations, 2016 and 2021: which object is part of which, and hypernyms.

Of the pictures only the masks of the 2016 release are opened.
"""

import os
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..data.ade20k import SUFFIXES, Listed, no_annotation, read_json, read_lines, read_masks, shown_numbers
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
        images: Names of the images that count, alone or as paths below `root`, without their endings; None: all that
            are no validation images.

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
            nearest = of.get(above, [] if unseen in chains else [unseen])
            if nearest:
                yield from ((i, j) for j in nearest)
                break


# ---------------------------------------------------------------------------------------------------------- reading


def read_annotations(root: Path, images: Collection[str] | None = None) -> Iterator[list[AnnotatedObject]]:
    """The objects of every image, as `relate_by_ade20k` takes them.

    Args:
        root: Folder of a release.
        images: As of `relate_by_ade20k`.

    Yields:
        The objects of one image, parts among them.

    Raises:
        InputError: There is no annotation, or one that cannot be read.
    """
    annotations = _annotations(root)
    if images is None:
        kept = [path for _, path in annotations if "validation" not in path.relative_to(root).parts]
    else:
        kept = [path for name, path in annotations if name in images or _below(root, name, path) in images]
    if annotations and not kept:
        raise InputError(root, f"none of its {len(annotations)} annotated images is one to learn from", CURE)
    if not annotations:
        trouble = "holds neither ADE_*.json (2021) nor ADE_*_atr.txt (2016), nor an image with such a file beside it"
        raise InputError(root, trouble, CURE)
    for path in tracked(kept, "annotations of ADE20K", "image"):
        yield _read_2021(path) if path.suffix == ".json" else _read_2016(path)


def _below(root: Path, name: str, path: Path) -> str:
    return path.relative_to(root).with_name(name).as_posix()


def _annotations(root: Path) -> list[tuple[str, Path]]:
    """(image's name without its ending, its annotation), by path.

    They are those that the data set reads, and those without a picture whose names begin as the releases' do.
    """
    annotations = []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        pictured = {Path(name).stem for name in names if Path(name).suffix.lower() in SUFFIXES}
        own: dict[str, str] = {}
        for ending in "_atr.txt", ".json":  # where both are there, the latter
            own |= {name.removesuffix(ending): name for name in names if name.endswith(ending)}
        annotations += [
            (stem, Path(folder) / name) for stem, name in own.items() if stem.startswith("ADE_") or stem in pictured
        ]
    return sorted(annotations, key=lambda item: item[1])


def _read_2021(path: Path) -> list[AnnotatedObject]:
    rows = read_json(path)["object"]
    try:
        names = {row["id"]: _names(row)[:2] for row in rows if "id" in row}
        objects = []
        for row in rows:
            part_of = row["parts"].get("ispartof")  # a number, or []
            whole = None if part_of in (None, []) else names[part_of]
            objects.append(AnnotatedObject(*_names(row), whole))
    except (KeyError, TypeError, AttributeError) as error:
        raise no_annotation(path, error) from None
    return objects


def _names(row: dict) -> tuple[str, str, tuple[str, ...]]:
    """Raw name, name (else the raw name) and hypernyms. Empty values are [], and a list of one is what it holds."""
    raw_name, hypernyms = row["raw_name"], row.get("hypernym") or []
    name = row.get("name") or raw_name
    hypernyms = [hypernyms] if isinstance(hypernyms, str) else hypernyms
    if not all(isinstance(word, str) for word in (raw_name, name, *hypernyms)):
        raise TypeError(f"a name of object {row.get('id')} is no text")
    return raw_name, name, tuple(hypernyms)


def _read_2016(path: Path) -> list[AnnotatedObject]:
    objects = read_lines(path)
    rows = {(one.level, one.number): (one.raw_name, one.name) for one in objects}
    whole_of = {part: rows[whole] for part, whole in _wholes(path, objects)}
    return [AnnotatedObject(*row, (), whole_of.get(key)) for key, row in rows.items()]


def _wholes(path: Path, objects: list[Listed]) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """(part, whole), each (level, number): the whole is the object of the level below under most pixels of the part."""
    if not any(one.level for one in objects):
        return
    below: dict[int, tuple[np.ndarray, dict[int, int]]] = {}
    for level, numbers, mask in read_masks(path, objects):
        values = mask.astype(np.int64)
        shown = shown_numbers(np.unique(values[values > 0]).tolist(), numbers) or {}
        if level - 1 in below:
            under, under_shown = below[level - 1]
            if under.shape != values.shape:
                raise InputError(path, f"the masks of levels {level - 1} and {level} differ in size", CURE)
            yield from _overlaps(level, values, shown, under, under_shown)
        below = {level: (values, shown)}


def _overlaps(
    level: int, values: np.ndarray, numbers: dict[int, int], under: np.ndarray, under_numbers: dict[int, int]
) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    both = (values > 0) & (under > 0)
    pairs, counts = np.unique(values[both] * 256 + under[both], return_counts=True)
    for pair in pairs[np.argsort(counts, kind="stable")].tolist():  # the most frequent last: it stays in the dict
        part, whole = divmod(pair, 256)
        if part in numbers and whole in under_numbers:
            yield (level, numbers[part]), (level - 1, under_numbers[whole])
