"""COCO instances (the 2014 and 2017 layouts, and any data set laid out like them). No transforms, no batching."""

import contextlib
import io
import logging
import os
import re
from collections import Counter
from hashlib import blake2b
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from irnet.data.sample import Sample, read_image
from irnet.errors import InputError

MIN_SIDE = 1e-3  # pixels; a box narrower than this has no area worth reading
_LAYOUT = "lay the data out as ROOT/annotations/instances_SPLIT.json and ROOT/SPLIT/*.jpg (or ROOT/images/SPLIT/*.jpg)"
_DOWNLOAD = "fetch the annotation file again, or correct the program that wrote it"


class CocoDataset(Dataset):
    """The images of one COCO split with a region for every usable annotated box.

    Images are sorted by id and an image's regions by annotation id. A box partly outside its image is clipped; one
    that cannot be a region is skipped and counted. An image that keeps no box stays, with R = 0.

    classes          names in the order of their category ids; a label is an index into it
    supercategories  for each class, the name of the group it belongs to, "" where the file names none
    skipped          how many annotations were left out, by reason: "iscrowd", "not finite", "zero area",
                     "outside the image", "over max_regions"
    clipped          how many boxes were cut to their image (by more than rounding, 1e-3 pixels)
    without_boxes    how many images have no region
    """

    def __init__(self, root: str | os.PathLike, split: str, max_regions: int | None = None):
        """Reads ROOT/annotations/instances_{split}.json and lists (but does not open) the images.

        Images are looked for in ROOT/images/{split}, ROOT/{split}, ROOT/images, then in the folder that 2014 file
        names tell (COCO_val2014_*.jpg). `max_regions` keeps an image's first so many regions by annotation id.
        InputError for whatever is missing or contradicts itself.
        """
        self.root, self.split = Path(root), split
        if max_regions is not None and max_regions < 1:
            raise InputError("--max-regions", f"{max_regions} is not a number of regions", "give 1 or more")
        self.path = _annotation_file(self.root, split)
        tables = _read_tables(self.path)
        self._read_categories(tables["categories"])
        self._read_images(tables["images"])
        self._read_annotations(tables["annotations"], max_regions)
        self.folder = _image_folder(self.root, split, self.file_names, self.path)
        self._log()

    def _read_categories(self, rows: list[dict]) -> None:
        ids = _integers(rows, "id", self.path, "category")
        order = np.argsort(ids, kind="stable")
        self.category_ids = ids[order]
        self.index_of_category = {int(number): i for i, number in enumerate(self.category_ids)}
        self.classes = [rows[i].get("name") for i in order]
        self.supercategories = [str(rows[i].get("supercategory") or "") for i in order]
        for number, name in zip(self.category_ids, self.classes, strict=True):
            if not isinstance(name, str):
                raise InputError(self.path, f"category {number} has no name", _DOWNLOAD)
        for what, values in (("id", self.category_ids.tolist()), ("name", self.classes)):
            value, count = Counter(values).most_common(1)[0]
            if count > 1:
                raise InputError(
                    self.path, f"{count} categories have the {what} {value!r}", f"give each its own {what}"
                )

    def _read_images(self, rows: list[dict]) -> None:
        ids = _integers(rows, "id", self.path, "image")
        order = np.argsort(ids, kind="stable")
        self.image_ids = ids[order]
        twice = self.image_ids[1:][self.image_ids[1:] == self.image_ids[:-1]]
        if len(twice):
            raise InputError(self.path, f"more than one image has the id {twice[0]}", "give each image its own id")
        sides = [_integers(rows, key, self.path, "image")[order] for key in ("height", "width")]
        self._sizes = np.stack(sides, axis=1)
        for i in np.flatnonzero((self._sizes < 1).any(axis=1))[:1]:
            height, width = self._sizes[i]
            raise InputError(self.path, f"image {self.image_ids[i]} has the size {width} x {height}", _DOWNLOAD)
        self.file_names = [rows[i].get("file_name") for i in order]
        for number, name in zip(self.image_ids, self.file_names, strict=True):
            if not isinstance(name, str) or not name:
                raise InputError(self.path, f"image {number} has no file_name", _DOWNLOAD)

    def _read_annotations(self, rows: list[dict], max_regions: int | None) -> None:
        ids = _integers(rows, "id", self.path, "annotation")
        image = _lookup(self.image_ids, _integers(rows, "image_id", self.path, "annotation"), ids, "image", self.path)
        numbers = _integers(rows, "category_id", self.path, "annotation")
        label = _lookup(self.category_ids, numbers, ids, "category", self.path)
        crowd = _integers(rows, "iscrowd", self.path, "annotation", default=0) != 0

        order = np.lexsort((ids, image))
        image, label, crowd = image[order], label[order], crowd[order]
        boxes = _corners(rows, self.path)[order]
        edges = np.tile(self._sizes[image][:, ::-1], 2).astype(np.float64)  # width, height, width, height
        sides = boxes[:, 2:] - boxes[:, :2]
        with np.errstate(invalid="ignore"):  # NaN and infinity are told apart below
            inside = np.clip(boxes, 0, edges)
            moved = np.abs(inside - boxes).max(axis=1, initial=0) > MIN_SIDE
        # Judged in the precision the boxes are kept in, so that x2 > x1 holds for what the model sees.
        kept = inside.astype(np.float32)
        left = kept[:, 2:] - kept[:, :2]
        reasons = [
            ("iscrowd", crowd),
            ("not finite", ~np.isfinite(boxes).all(axis=1)),
            ("zero area", ~(sides >= MIN_SIDE).all(axis=1)),
            ("outside the image", ((boxes[:, 2:] <= 0) | (boxes[:, :2] >= edges[:, :2])).any(axis=1)),
            ("zero area", ~(left >= MIN_SIDE).all(axis=1)),
        ]
        self.skipped: Counter[str] = Counter()
        good = np.ones(len(rows), dtype=bool)
        for reason, bad in reasons:
            self._skip(reason, good & bad)
            good &= ~bad
        if max_regions is not None:
            before = np.cumsum(good) - good  # usable annotations ahead of this one, over all images
            starts = np.searchsorted(image, np.arange(len(self.image_ids)))
            rank = before - before[starts[image]] if len(rows) else before
            self._skip("over max_regions", good & (rank >= max_regions))
            good &= rank < max_regions

        self._boxes, self._labels = kept[good], label[good].astype(np.int64)
        counts = np.bincount(image[good], minlength=len(self.image_ids))
        self._ptr = np.concatenate([[0], np.cumsum(counts)])
        self.clipped, self.without_boxes = int((moved & good).sum()), int((counts == 0).sum())
        self._kinds: list[str] = []
        if any("kind" in row for row in rows):
            self._kinds = [str(rows[i].get("kind", "")) for i in order[good]]

    def _skip(self, reason: str, which: np.ndarray) -> None:
        if which.any():
            self.skipped[reason] += int(which.sum())

    def _log(self) -> None:
        text = f"{self.path}: {len(self)} images ({self.without_boxes} without boxes), "
        text += (
            f"{len(self._labels)} boxes in {len(self.classes)} classes; {self.clipped} clipped to the image; skipped: "
        )
        text += ", ".join(f"{count} {reason}" for reason, count in sorted(self.skipped.items())) or "none"
        logging.getLogger("irnet").info(text)

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, i: int) -> Sample:
        """Image `i` with its regions. InputError where the file cannot be decoded or has not the size annotated."""
        i = range(len(self))[i]
        path = self.folder / self.file_names[i]
        image = read_image(path)
        height, width = self._sizes[i]
        if image.shape[1:] != (height, width):
            trouble = f"is {image.shape[2]} x {image.shape[1]}, but {self.path.name} says {width} x {height}"
            raise InputError(
                path, trouble, "use the image files the annotations were made for, neither resized nor turned"
            )
        part = slice(self._ptr[i], self._ptr[i + 1])
        # Copies: a caller who changes a sample must not change the data set.
        boxes, labels = torch.from_numpy(self._boxes[part].copy()), torch.from_numpy(self._labels[part].copy())
        return Sample(image, boxes, labels, self.file_names[i], self._kinds[part])

    def image_sizes(self) -> Tensor:
        """int64 [N, 2]: every image's (height, width), without opening one."""
        return torch.from_numpy(self._sizes.copy())

    def image_labels(self) -> list[Tensor]:
        """Every image's labels (int64 [R]), without opening one."""
        return list(torch.from_numpy(self._labels.copy()).split(np.diff(self._ptr).tolist()))

    def fingerprint(self) -> str:
        """A hash of the images' names and sizes and of all regions; other annotations give another."""
        digest = blake2b("\0".join(self.file_names).encode(errors="surrogatepass"), digest_size=8)
        for values in (self._sizes, self._ptr, self._labels, self._boxes):
            digest.update(np.ascontiguousarray(values).tobytes())
        return digest.hexdigest()


def _annotation_file(root: Path, split: str) -> Path:
    if not root.is_dir():
        raise InputError(root, "no such folder", "give --data-root the folder that holds annotations/")
    path = root / "annotations" / f"instances_{split}.json"
    if path.is_file():
        return path
    found = sorted(file.stem.removeprefix("instances_") for file in path.parent.glob("instances_*.json"))
    if found:
        raise InputError(path, "no such annotation file", f"choose one of the splits there: {', '.join(found)}")
    raise InputError(path, "no such annotation file, nor any other instances_*.json", _LAYOUT)


def _read_tables(path: Path) -> dict[str, list[dict]]:
    """The file's "images", "annotations" and "categories", each a list of dicts (the first and last not empty)."""
    try:
        from pycocotools.coco import COCO
    except ImportError as error:
        raise InputError(
            "pycocotools", f"needed to read COCO but cannot be imported ({error})", "pip install pycocotools"
        ) from None
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it reports its progress by print()
            tables = COCO(str(path)).dataset
    except OSError as error:
        raise InputError(path, f"cannot be read ({error.strerror})", "check the file's permissions") from None
    except (ValueError, RecursionError) as error:
        raise InputError(path, f"not valid JSON ({error})", "fetch the file again; it may be cut short") from None
    except KeyError as error:
        raise InputError(path, f"an entry has no {error}", _DOWNLOAD) from None
    except (AssertionError, TypeError, AttributeError) as error:
        raise InputError(path, f"not laid out as COCO instances ({error})", _DOWNLOAD) from None
    for key in ("images", "annotations", "categories"):
        rows = tables.get(key)
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise InputError(path, f"has no list of {key}", "use an instances_*.json file of COCO's format")
        if not rows and key != "annotations":
            raise InputError(path, f"lists no {key}", "use an instances_*.json file of COCO's format")
    return tables


def _integers(rows: list[dict], key: str, path: Path, what: str, default: int | None = None) -> np.ndarray:
    """int64 [len(rows)]: `key` of every row. Without `default` a row that lacks it is an InputError."""
    try:
        if default is None:
            return np.fromiter((row[key] for row in rows), np.int64, len(rows))
        return np.fromiter((row.get(key, default) for row in rows), np.int64, len(rows))
    except (KeyError, TypeError, ValueError, OverflowError):
        bad = next(row for row in rows if not _is_number(row.get(key, default), 2**63))
        trouble = f"{what} {bad.get('id', '(without id)')} has {key} = {bad.get(key)!r}, not an integer"
        raise InputError(path, trouble, _DOWNLOAD) from None


def _lookup(known: np.ndarray, wanted: np.ndarray, annotations: np.ndarray, what: str, path: Path) -> np.ndarray:
    """For each of `wanted` its place in `known` (sorted); InputError, naming the annotation, where it has none."""
    place = np.searchsorted(known, wanted).clip(max=len(known) - 1)
    missing = np.flatnonzero(known[place] != wanted)
    if len(missing):
        trouble = (
            f"annotation {annotations[missing[0]]} refers to {what} {wanted[missing[0]]}, which is not in the file"
        )
        trouble += f" ({len(missing)} such annotations)"
        raise InputError(path, trouble, f"add the {what} or remove its annotations")
    return place


def _corners(rows: list[dict], path: Path) -> np.ndarray:
    """float64 [A, 4]: COCO's [x, y, width, height] as (x1, y1, x2, y2); a null counts as NaN."""
    try:
        boxes = np.array([row["bbox"] for row in rows], dtype=np.float64).reshape(len(rows), 4)
    except (KeyError, TypeError, ValueError, OverflowError):
        bad = next(row for row in rows if not _is_box(row.get("bbox")))
        trouble = f"annotation {bad['id']} has bbox = {str(bad.get('bbox'))[:80]}, not [x, y, width, height]"
        raise InputError(path, trouble, _DOWNLOAD) from None
    with np.errstate(invalid="ignore", over="ignore"):
        boxes[:, 2:] += boxes[:, :2]
    return boxes


def _is_box(value: object) -> bool:
    return (
        isinstance(value, list) and len(value) == 4 and all(type(v) is float or _is_number(v, 2**1000) for v in value)
    )


def _is_number(value: object, bound: int) -> bool:
    return isinstance(value, int | float) and abs(value) < bound


def _image_folder(root: Path, split: str, names: list[str], annotations: Path) -> Path:
    """The first folder that holds every image; InputError, about the one that holds most, where none does."""
    told = re.match(r"COCO_(\w+)_\d+", PurePosixPath(names[0]).name)  # minival2014's images lie in val2014
    places = [f"images/{split}", split, "images", *([f"images/{told[1]}", told[1]] if told else [])]
    folders = [root / place for place in dict.fromkeys(places) if (root / place).is_dir()]
    if not folders:
        raise InputError(root, f"has no image folder for {annotations.name}: none of {', '.join(places)}", _LAYOUT)
    missing = {}
    for folder in folders:
        missing[folder] = _missing(folder, names)
        if not missing[folder]:
            return folder
    folder = min(folders, key=lambda folder: len(missing[folder]))
    trouble = f"no such image file ({len(missing[folder])} of the {len(names)} in {annotations.name} are missing)"
    raise InputError(
        folder / missing[folder][0], trouble, "unpack the images there, or remove them from the annotation file"
    )


def _missing(folder: Path, names: list[str]) -> list[str]:
    # One listing per folder: asking the file system for 118,000 files one by one takes minutes on a network disk.
    present: dict[str, set[str]] = {}
    missing = []
    for name in names:
        parent, base = os.path.split(name)
        if parent not in present:
            try:
                with os.scandir(folder / parent) as entries:
                    present[parent] = {entry.name for entry in entries}
            except OSError:
                present[parent] = set()
        if base not in present[parent]:
            missing.append(name)
    return missing
