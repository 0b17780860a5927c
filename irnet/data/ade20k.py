"""ADE20K as it comes, of 2016 (a list and masks beside every image) or of 2021 (a JSON file beside every image).

Objects and their parts are regions; a class is a raw name. Nothing of other data sets.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np

from ..config import DataConfig
from ..errors import InputError
from .cache import Sources, kept
from .images import MAX_PIXELS, read_header, read_image
from .parallel import each
from .table import Annotations, Images, Table, make_table
from .whole import WholeSet, listed, read_list

CURE = "fetch the file again, or leave its image out"
LAYOUT = "give --data-root the folder that holds images/ of the unpacked archive"
MISFIT, UNMATCHED = "mask and picture differ in size", "list and mask differ"
HIDDEN, NO_OUTLINE = "without a pixel", "without an outline"
_REASONS = ("", MISFIT, UNMATCHED, HIDDEN, NO_OUTLINE)
SUFFIXES = (".jpg", ".jpeg", ".png")  # of images, in small letters
_OCCLUDED = {"0": "no", "1": "yes", "no": "no", "yes": "yes", "": ""}


class Ade20k(WholeSet):
    """A split of ADE20K, 2016 or 2021, with the attributes part_level and occluded; of 2021 also cropped.

    A split is a list ROOT/SPLIT.txt (or .txt.gz) of images, as those of the original experiments (train, mval, mtest),
    or a folder of images, as they come (training, validation). Classes are the raw names that occur `data.min_count`
    times: by ROOT/objectnames.txt and objectcounts.txt where they are (1,484 of them), else in the training images.
    """

    candidates: ClassVar = {"train": ("train", "training"), "val": ("mval", "val", "validation")}

    def __init__(self, config: DataConfig, part: str, require_images: bool = True):
        self.root = self.folder = Path(config.root)
        self.path, self.missing = self.root, set()
        self.orientation, self.max_pixels = config.orientation, config.max_pixels
        self._min_count = config.min_count
        self.whole = _table(self.root, config)
        self.use_part(config, part)
        if require_images:
            self.warn_of_turned_images()

    def images_of(self, split: str) -> np.ndarray | None:
        names, path = self.whole.file_names, self.root / f"{split}.txt"
        lines = read_list(path)
        if lines is not None:
            return listed(lines, names, path)
        images = [i for i, name in enumerate(names) if split in name.split("/")[:-1]]
        return np.array(images, np.int64) if images else None

    def known_classes(self) -> list[str] | None:
        path = self.root / "objectnames.txt"
        names, counts = read_list(path), read_list(self.root / "objectcounts.txt")
        if names is None or counts is None:
            return None
        if len(names) != len(counts) or not all(count.isdecimal() for count in counts):
            trouble = f"its {len(names)} names and the {len(counts)} lines of objectcounts.txt are no pairs"
            raise InputError(path, trouble, "fetch both files again")
        often = [name for name, count in zip(names, counts, strict=True) if int(count) >= self._min_count]
        return [name for name in dict.fromkeys(often) if name and name != "-"]


def _table(root: Path, config: DataConfig) -> Table:
    """The table of all images below `root`."""
    if not root.is_dir():
        raise InputError(root, "no such folder", LAYOUT)
    images, files, pictures = [], [], hashlib.sha256()
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        here = set(names)
        for name in sorted(names):
            stem, suffix = os.path.splitext(name)
            own = next((own for own in (f"{stem}.json", f"{stem}_atr.txt") if own in here), None)
            if suffix.lower() not in SUFFIXES or own is None:
                continue
            path = Path(folder) / name
            images.append(path)
            files.append(Path(folder) / own)
            if own.endswith("_atr.txt"):
                masks = [mask for mask in (f"{stem}_seg.png", *_parts(stem, here)) if mask in here]
                files += [Path(folder) / mask for mask in masks]
            pictures.update(f"{path.relative_to(root)} {path.stat().st_size}\0".encode(errors="surrogateescape"))
    if not images:
        raise InputError(root, "holds no image with NAME.json or NAME_atr.txt beside it", LAYOUT)
    sources = Sources(root, files, f"ade20k {config.max_pixels}", "ade20k", pictures.hexdigest())
    return kept(sources, config.cache, lambda: _read(root, images, config.max_pixels))


def _parts(stem: str, names: set[str]) -> list[str]:
    """The names of an image's masks of parts, by level."""
    masks, level = [], 1
    while f"{stem}_parts_{level}.png" in names:
        masks.append(f"{stem}_parts_{level}.png")
        level += 1
    return masks


def _read(root: Path, images: list[Path], max_pixels: int) -> Table:
    contents = each(_Reader(max_pixels), images, f"annotations of {root}", "image")
    objects = [row for _, rows in contents for row in rows]
    names = sorted({row[0] for row in objects})
    index = {name: i for i, name in enumerate(names)}
    reasons = np.array([_REASONS.index(row[5]) for row in objects], np.int64)
    attributes = {"part_level": [row[1] for row in objects], "occluded": [row[2] for row in objects]}
    if any(row[3] for row in objects):
        attributes["cropped"] = [row[3] for row in objects]
    given = Annotations(
        np.repeat(np.arange(len(images)), [len(rows) for _, rows in contents]),
        np.array([index[row[0]] for row in objects], np.int64),
        np.array([row[4] for row in objects], np.float64).reshape(-1, 4),
        {reason: reasons == code for code, reason in enumerate(_REASONS) if code},
        attributes,
    )
    sizes = np.array([size for size, _ in contents], np.int64).reshape(-1, 2)
    file_names = [path.relative_to(root).as_posix() for path in images]
    return make_table(names, [""] * len(names), Images(np.arange(len(images)), file_names, sizes), given)


Row = tuple[str, str, str, str, tuple[float, float, float, float], str]  # name, level, occluded, cropped, box, reason
NO_BOX = (0.0, 0.0, 0.0, 0.0)


class _Reader:
    """Reads one image's annotations: its (height, width) and its objects and parts, in the file's order."""

    def __init__(self, max_pixels: int):
        self.max_pixels = max_pixels

    def __call__(self, image: Path) -> tuple[tuple[int, int], list[Row]]:
        own = image.with_suffix(".json")
        if own.exists():
            annotated, rows = _read_2021(own)
        else:
            annotated, rows = _read_2016(image, self.max_pixels)
        header = read_header(image, self.max_pixels)
        if annotated in (header.size(False), header.size(True)):
            return annotated[::-1], rows
        width, height = header.size(False)
        return (height, width), [(*row[:4], NO_BOX, row[5] or MISFIT) for row in rows]


# ----------------------------------------------------------------------------------------------------------- of 2016


class Listed(NamedTuple):
    """An object of 2016 as its line lists it.

    Numbers begin at 1 in each level; level 0 are objects, level 1 their parts, level 2 parts of these.
    """

    number: int
    level: int
    occluded: str
    name: str
    raw_name: str


def read_lines(path: Path) -> list[Listed]:
    """The objects of a NAME_atr.txt, in the file's order. InputError for a line that is none, or a number twice.

    A line is NUMBER # PART_LEVEL # OCCLUDED # WORDNET_NAME # RAW_NAME # ATTRIBUTES; the attributes may be left out.
    """
    lines = [(i, line) for i, line in enumerate(_text(path).splitlines(), 1) if line.strip()]
    objects = [_listed(path, i, line) for i, line in lines]
    seen = set()
    for one in objects:
        if (one.level, one.number) in seen:
            raise InputError(path, f"numbers two objects of level {one.level} alike", CURE)
        seen.add((one.level, one.number))
    return objects


def _listed(path: Path, number: int, line: str) -> Listed:
    fields = [field.strip() for field in line.split("#", 5)]
    good = len(fields) >= 5 and fields[0].isdecimal() and fields[1].isdecimal() and fields[4]
    if not good or fields[2] not in _OCCLUDED:
        raise InputError(path, f"line {number} is not NUMBER # LEVEL # OCCLUDED # NAME # RAW NAME: {line[:80]!r}", CURE)
    return Listed(int(fields[0]), int(fields[1]), _OCCLUDED[fields[2]], fields[3], fields[4])


def read_masks(
    path: Path, objects: Sequence[Listed], max_pixels: int = MAX_PIXELS
) -> Iterator[tuple[int, list[int], np.ndarray]]:
    """(level, numbers of its objects, its mask as uint8 [H, W]) of every level of a NAME_atr.txt; level 0 always."""
    stem = path.name.removesuffix("_atr.txt")
    for level in sorted({one.level for one in objects} | {0}):
        mask = path.with_name(f"{stem}_parts_{level}.png" if level else f"{stem}_seg.png")
        blue = read_image(mask, orientation="stored", max_pixels=max_pixels)[2].numpy()
        yield level, [one.number for one in objects if one.level == level], blue


def shown_numbers(values: Sequence[int], numbers: Sequence[int]) -> dict[int, int] | None:
    """The number of the object that each value of a mask shows; None where list and mask cannot be matched.

    values   those that occur in the mask beside 0, ascending: they ascend with the numbers
    numbers  of all objects of the mask's level

    Where all objects are to be seen the first value is the first object, whether or not some pixel is background. Of n
    objects, object j has the value floor(255 j / n + 1/2), which tells which are to be seen where some are hidden.
    """
    count, ordered = len(numbers), sorted(numbers)
    if len(values) == count:
        return dict(zip(values, ordered, strict=True))
    coded = [(510 * j + count) // (2 * count) for j in range(1, count + 1)]
    if len(set(coded)) < count or not set(values) <= set(coded):
        return None
    return dict(zip(coded, ordered, strict=True))


def _read_2016(image: Path, max_pixels: int) -> tuple[tuple[int, int], list[Row]]:
    """The (width, height) of an image's masks, and its objects: those of its list, with boxes of the masks' pixels."""
    path = image.with_name(f"{image.stem}_atr.txt")
    objects = read_lines(path)
    boxes: dict[tuple[int, int], tuple] = {}
    size = None
    for level, numbers, blue in read_masks(path, objects, max_pixels):
        size = size or (blue.shape[1], blue.shape[0])
        for number, box in zip(numbers, _instances(blue, numbers), strict=True):
            boxes[level, number] = (NO_BOX, MISFIT) if size != blue.shape[::-1] else box
    return size, [(one.raw_name, str(one.level), one.occluded, "", *boxes[one.level, one.number]) for one in objects]


def _instances(blue: np.ndarray, numbers: list[int]) -> list[tuple[tuple, str]]:
    """The box of every numbered object in a mask, or the reason why it has none."""
    mask_values, boxes = mask_boxes(blue)
    values = mask_values.tolist()
    shown = shown_numbers(values, numbers)
    if shown is None:
        return [(NO_BOX, UNMATCHED)] * len(numbers)
    own = {shown[value]: tuple(box) for value, box in zip(values, boxes, strict=True)}
    return [(own[number], "") if number in own else (NO_BOX, HIDDEN) for number in numbers]


def mask_boxes(blue: np.ndarray) -> tuple[np.ndarray, list[list[float]]]:
    """The values of a mask (uint8 [H, W]) beside 0, ascending, and the box around the pixels of each.

    A box goes from the edge of the first pixel to the far edge of the last one.
    """
    height, width = blue.shape
    rows, columns = np.zeros((height, 256), bool), np.zeros((width, 256), bool)
    rows[np.arange(height)[:, None], blue] = True
    columns[np.arange(width)[None], blue] = True
    values = np.flatnonzero(rows.any(axis=0))
    values = values[values > 0]
    low = [first[:, values].argmax(axis=0) for first in (columns, rows)]
    high = [len(last) - last[::-1, values].argmax(axis=0) for last in (columns, rows)]
    return values, np.stack([*low, *high], axis=1).astype(float).tolist()


# ----------------------------------------------------------------------------------------------------------- of 2021


def read_json(path: Path) -> dict:
    """What `annotation` of a JSON file holds, with `object` as a list. InputError where it is not so."""
    try:
        content = json.loads(_text(path))["annotation"]
        objects = content["object"]
        objects = [objects] if isinstance(objects, dict) else objects  # MATLAB writes a list of one as what it holds
        if not isinstance(objects, list):
            raise TypeError("its objects are no list")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise no_annotation(path, error) from None
    return content | {"object": objects}


def no_annotation(path: Path, error: Exception) -> InputError:
    """The error for a JSON file of which `error` says what is wrong."""
    trouble = f"is no annotation of ADE20K 2021 ({type(error).__name__}: {' '.join(str(error).split())[:80]})"
    return InputError(path, trouble, CURE)


def _read_2021(path: Path) -> tuple[tuple[int, int], list[Row]]:
    """The annotated (width, height), and the objects with the boxes of their outlines, around hidden parts, too.

    An outline's points are edges of pixels: its right end is the mask's last pixel + 1.
    """
    content = read_json(path)
    try:
        height, width = (int(side) for side in content["imsize"][:2])
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise no_annotation(path, error) from None
    return (width, height), [_object(path, i, given) for i, given in enumerate(content["object"])]


def _object(path: Path, i: int, given: object) -> Row:
    try:
        name, level = given["raw_name"].strip(), int(given["parts"]["part_level"])
        # Empty values are [] whatever the type; crop is "0" or "1".
        occluded, crop = (given.get(key) or "" for key in ("occluded", "crop"))
        sides = [_numbers(given["polygon"][axis]) for axis in "xy"]
        good = name and level >= 0 and str(occluded) in _OCCLUDED and str(crop) in ("", "0", "1")
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError):
        good = False
    if not good or len(sides[0]) != len(sides[1]):
        trouble = f"object {i} (the first is 0) has not the fields of ADE20K 2021"
        raise InputError(path, f"{trouble}: {json.dumps(given)[:80]}", CURE)
    box, reason = NO_BOX, NO_OUTLINE
    if sides[0]:
        (x, y), reason = sides, ""
        box = (min(x), min(y), max(x), max(y))
    cropped = {"0": "no", "1": "yes", "": ""}[str(crop)]
    return name, str(level), _OCCLUDED[str(occluded)], cropped or "unknown", box, reason


def _numbers(values: object) -> list[float]:
    """Return `values` as a list of floats; the files write a single number without brackets."""
    values = values if isinstance(values, list) else [values]
    if not all(type(value) in (int, float) for value in values):
        raise TypeError("not numbers")
    return [float(value) for value in values]


def _text(path: Path) -> str:
    """Read a text file, which is in UTF-8 or, as some of ADE20K's are, in Latin-1."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(path, f"cannot be read ({error.strerror})", CURE) from None
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("latin-1")
