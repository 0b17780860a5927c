"""COCO instances, in the layouts of `layouts`. No transforms, no batching."""

import contextlib
import logging
import os
from collections import Counter
from hashlib import blake2b
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import InputError
from . import coco_file, layouts
from .images import MAX_PIXELS, Header, ends_whole, read_header, read_image
from .sample import Sample

MIN_SIDE = 1e-3  # pixels; a box narrower than this has no area worth reading
LOOKED_AT = 256  # headers that are read to warn of turned photographs; `irnet data check` reads all


log = logging.getLogger("irnet")


def ambiguity(count: int, images: int) -> str:
    """The warning about images whose orientation their size does not settle."""
    return (
        f"{count} of {images} images looked at carry an EXIF orientation and have the annotated size turned and not "
        "turned; they are read as stored; set data.orientation=turned if they were annotated as viewers show them"
    )


def _group(supercategory: object) -> str:
    """A class's group; converters write "none" or the like where there is none."""
    name = "" if supercategory is None else str(supercategory).strip()
    return "" if name.lower() in ("", "none", "null", "nan", "n/a", "undefined") else name


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

    def __init__(
        self,
        root: str | os.PathLike,
        split: str,
        max_regions: int | None = None,
        *,
        share: layouts.Share | None = None,
        orientation: str = "auto",
        max_pixels: int = MAX_PIXELS,
        require_images: bool = True,
    ):
        """Reads the split's annotation file and lists (but does not open) the images.

        split           a name that `layouts.annotation_files` finds, or a path of a JSON file relative to `root`
        max_regions     keep an image's first so many regions by annotation id
        share           take a part of the file's images
        orientation     see `images.read_image`
        max_pixels      see `images.read_image`
        require_images  refuse a set that lacks an image; otherwise `missing` names those
        InputError for whatever is missing or contradicts itself.
        """
        self.root, self.split, self.share = Path(root), split, share
        self.orientation, self.max_pixels = orientation, max_pixels
        if max_regions is not None and max_regions < 1:
            raise InputError("--max-regions", f"{max_regions} is not a number of regions", "give 1 or more")
        self.path = layouts.annotation_file(self.root, split)
        tables = coco_file.read_tables(self.path)
        self._read_categories(tables["categories"])
        self._read_images(tables["images"])
        # Names are looked for before a share is taken: whether their last parts differ is judged on the whole file.
        self._annotated_names = self.file_names
        self.folder, self.file_names, self.missing = layouts.image_folder(
            self.root, split, self._annotated_names, self.path, require_images
        )
        self._read_annotations(tables["annotations"], max_regions)
        self._log()

    def _read_categories(self, rows: list[dict]) -> None:
        ids = coco_file.integers(rows, "id", self.path, "category")
        names = coco_file.texts(rows, "name", self.path, "category")
        coco_file.unique(ids.tolist(), self.path, "category", "id")
        coco_file.unique(names, self.path, "category", "name")
        order = np.argsort(ids, kind="stable")
        self.category_ids = ids[order]
        self.index_of_category = {int(number): i for i, number in enumerate(self.category_ids)}
        self.classes = [names[i] for i in order]
        self.supercategories = [_group(rows[i].get("supercategory")) for i in order]

    def _read_images(self, rows: list[dict]) -> None:
        ids = coco_file.integers(rows, "id", self.path, "image")
        coco_file.unique(ids.tolist(), self.path, "image", "id")
        order = np.argsort(ids, kind="stable")
        self.image_ids = ids[order]
        sides = [coco_file.integers(rows, key, self.path, "image")[order] for key in ("height", "width")]
        self._sizes = np.stack(sides, axis=1)
        for i in np.flatnonzero((self._sizes < 1).any(axis=1))[:1]:
            height, width = self._sizes[i]
            raise InputError(self.path, f"image {self.image_ids[i]} has the size {width} x {height}", coco_file.CURE)
        for row in rows:  # LVIS names the folder and the file at the end of an address
            if "file_name" not in row and isinstance(row.get("coco_url"), str):
                row["file_name"] = "/".join(row["coco_url"].split("/")[-2:])
        names = coco_file.texts(rows, "file_name", self.path, "image")
        self.file_names = [names[i] for i in order]

    def _read_annotations(self, rows: list[dict], max_regions: int | None) -> None:
        integers = lambda key, **more: coco_file.integers(rows, key, self.path, "annotation", **more)  # noqa: E731
        ids, images, categories, crowd = (
            *map(integers, ("id", "image_id", "category_id")),
            integers("iscrowd", default=0) != 0,
        )
        coco_file.unique(ids.tolist(), self.path, "annotation", "id")
        image = coco_file.positions(self.image_ids, images, ids, "image", self.path)
        label = coco_file.positions(self.category_ids, categories, ids, "category", self.path)

        corners = coco_file.corners(rows, self.path)
        if self.share is not None:
            image, kept_rows = self._take_share(image)
            rows = [rows[i] for i in kept_rows]
            ids, label, crowd, corners = ids[kept_rows], label[kept_rows], crowd[kept_rows], corners[kept_rows]

        order = np.lexsort((ids, image))
        image, label, crowd, boxes = image[order], label[order], crowd[order], corners[order]
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

    def _take_share(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Leave only the images of the share; of its annotations, the index of their image and of their row.

        image  int64 [A], of every annotation in the file
        The whole file was checked before, so that both of its parts are refused for the same reasons.
        """
        if len(self.file_names) < 2:
            raise InputError(self.path, "its one image cannot be trained on and held out", "add images or a val split")
        chosen = self.share.select(self._annotated_names)
        self.image_ids, self._sizes = self.image_ids[chosen], self._sizes[chosen]
        self.file_names = [name for name, keep in zip(self.file_names, chosen, strict=True) if keep]
        left = set(self.file_names)
        self.missing = [name for name in self.missing if name in left]
        rows = np.flatnonzero(chosen[image])
        return (np.cumsum(chosen) - 1)[image[rows]], rows

    def _skip(self, reason: str, which: np.ndarray) -> None:
        if which.any():
            self.skipped[reason] += int(which.sum())

    def _log(self) -> None:
        share = f" ({self.share})" if self.share else ""
        text = f"{self.path}{share}: {len(self)} images ({self.without_boxes} without boxes), "
        text += (
            f"{len(self._labels)} boxes in {len(self.classes)} classes; {self.clipped} clipped to the image; skipped: "
        )
        text += ", ".join(f"{count} {reason}" for reason, count in sorted(self.skipped.items())) or "none"
        log.info(text)

    def warn_of_turned_images(self) -> None:
        """Log how many of up to LOOKED_AT images, carry an EXIF orientation that their size does not settle."""
        looked_at = np.unique(np.linspace(0, len(self) - 1, LOOKED_AT).astype(int))
        count = 0
        for i in looked_at.tolist():
            with contextlib.suppress(InputError):  # told where the image is used, with its place in the data
                count += self._header(i).is_ambiguous(self._annotated(i))
        if count and self.orientation == "auto":
            log.warning("%s: %s", self.path, ambiguity(count, len(looked_at)))

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, i: int) -> Sample:
        """Image `i` with its regions. InputError where the file cannot be decoded or has not the size annotated."""
        i = range(len(self))[i]
        path = self.folder / self.file_names[i]
        annotated, rules = self._annotated(i), {"orientation": self.orientation, "max_pixels": self.max_pixels}
        image = read_image(path, annotated=annotated, **rules)
        if (image.shape[2], image.shape[1]) != annotated:
            raise self._misfit(i, self._header(i))
        part = slice(self._ptr[i], self._ptr[i + 1])
        # Copies: a caller who changes a sample must not change the data set.
        boxes, labels = torch.from_numpy(self._boxes[part].copy()), torch.from_numpy(self._labels[part].copy())
        return Sample(image, boxes, labels, self.file_names[i], self._kinds[part])

    def examine(self, i: int, decode: bool) -> tuple[InputError | None, bool]:
        """What is wrong with image `i`, and whether its orientation is ambiguous.

        decode  decode it in full; otherwise only its header and its end are read, unless it is deep
        """
        try:
            header = self._header(i)
            if header.size(header.is_turned(self.orientation, self._annotated(i))) != self._annotated(i):
                return self._misfit(i, header), False
            if decode or header.deep or not ends_whole(self.folder / self.file_names[i]):
                self[i]
        except InputError as error:
            return error, False
        return None, self.orientation == "auto" and header.is_ambiguous(self._annotated(i))

    def _header(self, i: int) -> Header:
        return read_header(self.folder / self.file_names[i], self.max_pixels)

    def _annotated(self, i: int) -> tuple[int, int]:
        height, width = self._sizes[i].tolist()
        return width, height

    def _misfit(self, i: int, header: Header) -> InputError:
        width, height = self._annotated(i)
        trouble = f"is {header.width} x {header.height}, but {self.path.name} says {width} x {height}"
        cure = "use the image files the annotations were made for, neither resized nor turned"
        if header.orientation != 1:
            trouble += f", and it carries the EXIF orientation {header.orientation}"
            cure = f"{cure}, or choose data.orientation, which is {self.orientation}"
        return InputError(self.folder / self.file_names[i], trouble, cure)

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
