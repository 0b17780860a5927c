"""Pascal VOC: an XML file for every image, as the challenge, labelImg and others write it."""

import hashlib
import os
import re
from pathlib import Path
from typing import ClassVar
from xml.etree import ElementTree

import numpy as np

from ..config import DataConfig
from ..errors import InputError
from .cache import Sources, kept
from .images import read_header
from .parallel import each
from .table import Annotations, Images, Table, make_table
from .whole import WholeSet, listed, read_list

CURE = "correct the file, or leave it out"
LAYOUT = "give --data-root a folder with Annotations/*.xml and JPEGImages, or with XML files beside the images"
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
NO_BOX = "without a box"
FLAGS = ("difficult", "truncated", "occluded")
MOST = 2**31 - 1  # pixels of an image's side
_FLAG = re.compile(r"\s+(-1|0|1)$")  # behind a name in the list of one class: without it, difficult, or with it


class Voc(WholeSet):
    """A split of a data set in Pascal VOC's format, with the attributes difficult, truncated and occluded.

    A split is a list .../ImageSets/Main/SPLIT.txt, of one year or of several, or a folder of that name. Classes are the
    names in the training images. Coordinates count pixels from 1, both ends included: x1 is xmin - 1, x2 is xmax.
    """

    candidates: ClassVar = {"train": ("train", "training"), "val": ("val", "valid", "validation", "test")}
    rare_names = False

    def __init__(self, config: DataConfig, part: str, require_images: bool = True):
        self.root = self.folder = self.path = Path(config.root)
        self.orientation, self.max_pixels = config.orientation, config.max_pixels
        pairs = _find(self.root)
        pictures, self.missing = _look_at_images(self.root, pairs)
        sources = Sources(self.root, [path for path, _ in pairs], f"voc {config.max_pixels}", "voc", pictures)
        self.whole = kept(sources, config.cache, lambda: _read(self.root, pairs, config.max_pixels))
        self.use_part(config, part)
        self.refuse_missing(require_images)
        if require_images:
            self.warn_of_turned_images()

    def images_of(self, split: str) -> np.ndarray | None:
        names = self.whole.file_names
        images = []
        for folder in sorted(self.root.glob("**/ImageSets/Main")):
            lines = read_list(folder / f"{split}.txt")
            if lines is not None:
                year = folder.parent.parent.relative_to(self.root).as_posix()
                inside = "" if year == "." else f"{year}/"
                own = {Path(name).stem: i for i, name in enumerate(names) if name.startswith(inside)}
                stems = [line if line in own else _FLAG.sub("", line) for line in lines if line]
                images.append(np.array(list(own.values()))[listed(stems, list(own), folder / f"{split}.txt")])
        if images:
            return np.unique(np.concatenate(images))
        inside = [i for i, name in enumerate(names) if split in name.split("/")[:-1]]
        return np.array(inside, np.int64) if inside else None


def _find(root: Path) -> list[tuple[Path, Path]]:
    """Every annotation file below `root` with its image, sorted by image."""
    if not root.is_dir():
        raise InputError(root, "no such folder", LAYOUT)
    pairs, listings = [], {}

    def stems(folder: Path) -> dict[str, str]:
        if folder not in listings:
            names = sorted(os.listdir(folder)) if folder.is_dir() else []
            listings[folder] = {Path(n).stem: n for n in names if Path(n).suffix.lower() in SUFFIXES}
        return listings[folder]

    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        here = Path(folder)
        images = here.parent / "JPEGImages" if here.name == "Annotations" else here
        if here.name == "Annotations" and not images.is_dir():
            images = here.parent / "images"
        for name in sorted(names):
            if name.endswith(".xml"):
                stem = name.removesuffix(".xml")
                pairs.append((here / name, images / stems(images).get(stem, f"{stem}.jpg")))
    if not pairs:
        raise InputError(root, "holds no XML file", LAYOUT)
    return sorted(pairs, key=lambda pair: pair[1])


def _look_at_images(root: Path, pairs: list[tuple[Path, Path]]) -> tuple[str, set[str]]:
    """A hash of the images' names, sizes and times, for a size may be an image's own, and the names of missing ones."""
    digest, missing = hashlib.sha256(), set()
    for _, image in pairs:
        name, facts = os.path.relpath(image, root), ""
        if image.is_file():
            stat = image.stat()
            facts = f"{stat.st_size} {stat.st_mtime_ns}"
        else:
            missing.add(name)
        digest.update(f"{name}\0{facts}\0".encode(errors="surrogateescape"))
    return digest.hexdigest(), missing


def _read(root: Path, pairs: list[tuple[Path, Path]], max_pixels: int) -> Table:
    contents = each(_Reader(max_pixels), pairs, f"annotations of {root}", "image")
    objects = [row for _, rows in contents for row in rows]
    classes = sorted({row[0] for row in objects})
    index = {name: i for i, name in enumerate(classes)}
    given = Annotations(
        np.repeat(np.arange(len(pairs)), [len(rows) for _, rows in contents]),
        np.array([index[row[0]] for row in objects], np.int64),
        np.array([row[1] or (0, 0, 0, 0) for row in objects], np.float64).reshape(-1, 4),
        {NO_BOX: np.array([row[1] is None for row in objects], bool)},
        {flag: [row[2][i] for row in objects] for i, flag in enumerate(FLAGS) if any(row[2][i] for row in objects)},
    )
    sizes = np.array([size for size, _ in contents], np.int64).reshape(-1, 2)
    names = [os.path.relpath(image, root) for _, image in pairs]
    return make_table(classes, [""] * len(classes), Images(np.arange(len(pairs)), names, sizes), given)


Row = tuple[str, tuple[float, float, float, float] | None, tuple[str, ...]]  # name, box, flags


class _Reader:
    """Reads one annotation file: its image's (height, width) and its objects."""

    def __init__(self, max_pixels: int):
        self.max_pixels = max_pixels

    def __call__(self, pair: tuple[Path, Path]) -> tuple[tuple[int, int], list[Row]]:
        path, image = pair
        try:
            tree = ElementTree.parse(path).getroot()
        except OSError as error:
            raise InputError(path, f"cannot be read ({error.strerror})", "check its permissions") from None
        except (ElementTree.ParseError, ValueError, LookupError) as error:
            raise InputError(path, f"is not valid XML ({error})", CURE) from None
        if tree.tag != "annotation":
            raise InputError(path, f"holds <{tree.tag}>, not Pascal VOC's <annotation>", LAYOUT)
        width, height = (_value(path, tree, f"size/{side}", 0.0) for side in ("width", "height"))
        for side, value in (("width", width), ("height", height)):
            if not value <= MOST:
                raise InputError(path, f"size/{side} is {value:g}, not a number of pixels", CURE)
        if width < 1 or height < 1:  # some tools leave them out
            header = read_header(image, self.max_pixels)
            width, height = header.size(False)
        rows = [_object(path, i, own) for i, own in enumerate(tree.findall("object"))]
        return (int(height), int(width)), rows


def _object(path: Path, i: int, own: ElementTree.Element) -> Row:
    name = (own.findtext("name") or "").strip()
    if not name:
        raise InputError(path, f"object {i} (the first is 0) has no name", CURE)
    flags = tuple((own.findtext(flag) or "").strip().lower() for flag in FLAGS)
    flags = tuple({"0": "no", "1": "yes", "false": "no", "true": "yes", "unspecified": ""}.get(f, f) for f in flags)
    frame = own.find("bndbox")  # the object's own: its parts have boxes, too
    if frame is None:
        return name, None, flags
    x1, y1, x2, y2 = (_value(path, frame, side, None, f"object {i}, ") for side in ("xmin", "ymin", "xmax", "ymax"))
    return name, (x1 - 1, y1 - 1, x2, y2), flags


def _value(path: Path, tree: ElementTree.Element, name: str, default: float | None, where: str = "") -> float:
    text = tree.findtext(name)
    if text is None and default is not None:
        return default
    try:
        return float(text or "")
    except ValueError:
        raise InputError(path, f"{where}{name} is {text!r}, not a number", CURE) from None
