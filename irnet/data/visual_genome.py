"""Visual Genome, versions 1.0 to 1.4: objects.json and image_data.json; a class is a synset."""

import gc
import logging
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import numpy as np

from ..config import DataConfig
from ..errors import InputError
from . import coco_file
from .cache import Sources, kept
from .layouts import missing_images
from .table import Annotations, Images, Table, make_table
from .whole import WholeSet, listed, read_list

LAYOUT = "put objects.json and image_data.json there, and the images in VG_100K and VG_100K_2"
CURE = "fetch it again from the site of Visual Genome"
NO_SYNSET, REPEATED = "without a synset", "an object's box a second time"

log = logging.getLogger("irnet")


class _Synset(msgspec.Struct, gc=False):
    synset_name: str


class _Object(msgspec.Struct, gc=False):
    x: float
    y: float
    w: float
    h: float
    object_id: int | None = None
    id: int | None = None  # of version 1.0
    names: list[str] = []
    name: str = ""  # where names were not merged
    synsets: list[str | _Synset] = []


class _Entry(msgspec.Struct, gc=False):
    objects: list[_Object]
    image_id: int | None = None
    id: int | None = None  # of version 1.0


class _Image(msgspec.Struct, gc=False):
    width: int
    height: int
    url: str
    image_id: int | None = None
    id: int | None = None


class _Number(msgspec.Struct, gc=False):
    image_id: int | None = None
    id: int | None = None


class VisualGenome(WholeSet):
    """A split of Visual Genome: a region for every object that has a synset.

    A split is a list ROOT/SPLIT.txt of image ids, or ROOT/SPLIT.json, the part of objects.json that it takes, as the
    original experiments have it. Classes are the synsets that occur `data.min_count` times: by ROOT/synsets.txt, lines
    of NAME:COUNT, where it is, else in the training images. An object with several synsets is one region, of the one
    that is the most frequent in the data set. Where no object has a synset, classes are names.
    """

    candidates: ClassVar = {"train": ("train",), "val": ("val", "test")}

    def __init__(self, config: DataConfig, part: str, require_images: bool = True):
        self.root = Path(config.root)
        self.orientation, self.max_pixels = config.orientation, config.max_pixels
        self._min_count = config.min_count
        objects = _object_files(self.root)
        self.path = objects[0]
        sources = Sources(self.root, [*objects, self.root / "image_data.json"], "visual genome", objects[0].stem)
        whole = kept(sources, config.cache, lambda: _read(self.root, objects))
        self.folder, names, self.missing = _find_images(self.root, whole.file_names)
        self.whole = replace(whole, file_names=names)
        self.use_part(config, part)
        self.refuse_missing(require_images)
        if require_images:
            self.warn_of_turned_images()

    def images_of(self, split: str) -> np.ndarray | None:
        path = self.root / f"{split}.txt"
        lines = read_list(path)
        if lines is None and (path := self.root / f"{split}.json").is_file():
            lines = [str(_number(row, path, i)) for i, row in enumerate(_decoded(path, list[int | _Number]))]
        return None if lines is None else listed(lines, list(map(str, self.whole.image_ids.tolist())), path)

    def known_classes(self) -> list[str] | None:
        path = self.root / "synsets.txt"
        lines = read_list(path)
        if lines is None:
            return None
        pairs = [line.rsplit(":", 1) for line in lines if line]
        for pair in pairs:
            if len(pair) != 2 or not pair[0] or not pair[1].strip().isdecimal():
                raise InputError(path, f"holds the line {':'.join(pair)[:80]!r}", "write NAME:COUNT on each line")
        return list(dict.fromkeys(name for name, count in pairs if int(count) >= self._min_count))


def _object_files(root: Path) -> list[Path]:
    """The file of all objects, that of the latest version; where there is none, those of the splits."""
    if not root.is_dir():
        raise InputError(root, "no such folder", f"give --data-root a folder, and {LAYOUT}")
    files = sorted(root.glob("objects*.json"))[-1:]
    files = files or [path for name in ("train", "val", "test") if (path := root / f"{name}.json").is_file()]
    needed = [*(files or [root / "objects.json"]), root / "image_data.json"]
    for path in needed:
        if not path.is_file():
            raise InputError(path, "no such file", LAYOUT)
    return files


def _decoded(path: Path, kind: Any) -> Any:
    """The content of a JSON file, of which all must be as `kind` says."""
    collects = gc.isenabled()
    gc.disable()  # millions of boxes are no garbage, and looking whether they are takes longer than reading them
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except OSError as error:
        raise InputError(path, f"cannot be read ({error.strerror})", "check its permissions") from None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        trouble = f"is not as Visual Genome's are ({' '.join(str(error).split())[:200]})"
        raise InputError(path, trouble, CURE) from None
    finally:
        if collects:
            gc.enable()


def _number(row: Any, path: Path, i: int) -> int:
    if isinstance(row, int):
        return row
    number = row.id if row.image_id is None else row.image_id
    if number is None:
        raise InputError(path, f"entry {i} (the first is 0) has no image_id", CURE)
    return number


def _read(root: Path, objects: list[Path]) -> Table:
    path = root / "image_data.json"
    known = {_number(row, path, i): row for i, row in enumerate(_decoded(path, list[_Image]))}
    entries: dict[int, list[_Object]] = {}
    for file in objects:
        for i, entry in enumerate(_decoded(file, list[_Entry])):
            number = _number(entry, file, i)
            if number in entries:
                raise InputError(file, f"lists image {number} twice", "take one of its entries out")
            if number not in known:
                raise InputError(file, f"image {number} is not in {path.name}", "take both files of one version")
            entries[number] = entry.objects
    ids = sorted(entries)
    rows = [known[number] for number in ids]
    sizes = np.array([(row.height, row.width) for row in rows], np.int64).reshape(-1, 2)
    for i in np.flatnonzero((sizes < 1).any(axis=1))[:1]:
        raise InputError(path, f"image {ids[i]} has the size {sizes[i, 1]} x {sizes[i, 0]}", CURE)
    names = ["/".join(row.url.split("/")[-2:]) for row in rows]
    coco_file.unique(names, path, "image", "url")
    images = Images(np.array(ids, np.int64), names, sizes)
    classes, given = _annotations([entries[number] for number in ids])
    return make_table(classes, [""] * len(classes), images, given)


def _annotations(objects: list[list[_Object]]) -> tuple[list[str], Annotations]:
    """The classes and annotations of images, by their objects."""
    synsets = [[_synsets(own) for own in image] for image in objects]
    frequency = Counter(name for image in synsets for own in image for name in own)
    if not frequency:
        log.info("no object has a synset: classes are the objects' names")
        synsets = [[(own.names or [own.name])[:1] for own in image] for image in objects]
        frequency = Counter(name for image in synsets for own in image for name in own if name)
    classes = sorted(frequency)
    index = {name: i for i, name in enumerate(classes)}
    labels, boxes, again, image_of = [], [], [], []
    for image, (own_objects, own_synsets) in enumerate(zip(objects, synsets, strict=True)):
        seen = set()
        for own, names in zip(own_objects, own_synsets, strict=True):
            number = own.id if own.object_id is None else own.object_id
            key = (number, own.x, own.y, own.w, own.h)
            again.append(number is not None and key in seen)  # one object may well have several boxes
            seen.add(key)
            labels.append(index.get(max(names, key=lambda name: frequency[name], default=""), -1))
            boxes.append((own.x, own.y, own.x + own.w, own.y + own.h))
            image_of.append(image)
    label = np.array(labels, np.int64)
    reasons = {REPEATED: np.array(again, bool), NO_SYNSET: label < 0}
    box = np.array(boxes, np.float64).reshape(-1, 4)
    return classes, Annotations(np.array(image_of, np.int64), label, box, reasons)


def _synsets(own: _Object) -> list[str]:
    names = (synset if isinstance(synset, str) else synset.synset_name for synset in own.synsets)
    return [name for name in names if name.strip()]


def _find_images(root: Path, names: list[str]) -> tuple[Path, list[str], set[str]]:
    """The folder that holds most images, their names in it, and those it lacks."""
    best = None
    last = [name.rsplit("/", 1)[-1] for name in names]
    for folder in (root, root / "VG", root / "images"):
        for spelling in (names, last):
            missing = set(missing_images(folder, spelling))
            if best is None or len(missing) < len(best[2]):
                best = folder, spelling, missing
    return best
