"""Image files whose annotations are in memory: all of a `RegionDataset` but the reading, which each data set adds."""

import contextlib
import logging
from collections import Counter
from hashlib import blake2b
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import InputError
from .images import Header, ambiguity, ends_whole, read_header, read_image
from .layouts import Share
from .sample import Sample

MIN_SIDE = 1e-3  # pixels; a box narrower than this has no area worth reading
LOOKED_AT = 256  # headers that are read to warn of turned photographs; `irnet data check` reads all

log = logging.getLogger("irnet")


class AnnotatedImages(Dataset):
    """The images of one split with a region for every usable annotated box.

    A box partly outside its image is clipped; one that cannot be a region is skipped and counted. An image that keeps
    no box stays, with R = 0. A reader sets the fields below (see also `RegionDataset`), then calls `keep_usable`.

    skipped        how many annotations were left out, by reason: those of the reader, "not finite", "zero area",
                   "outside the image", "over max_regions"
    clipped        how many boxes were cut to their image (by more than rounding, 1e-3 pixels)
    without_boxes  how many images have no region
    """

    classes: list[str]
    supercategories: list[str]
    root: Path
    path: Path
    split: str
    share: Share | None  # of the file's images, that the split takes; None: all
    folder: Path  # where the images lie
    file_names: list[str]  # the images' names in there
    sizes: np.ndarray  # int64 [N, 2], every image's (height, width) as annotated
    missing: set[str]  # the names of images that are not there
    orientation: str  # see `images.read_image`
    max_pixels: int

    def keep_usable(
        self,
        image: np.ndarray,
        label: np.ndarray,
        boxes: np.ndarray,
        reasons: dict[str, np.ndarray],
        max_regions: int | None,
        attributes: dict[str, list[str]],
    ) -> None:
        """Take the usable ones of A annotations, and log how many those are.

        image        int64 [A], the indices of their images, ascending
        label        int64 [A]
        boxes        float64 [A, 4], (x1, y1, x2, y2) in pixels
        reasons      bool [A] each: annotations that are left out, by the reason that is counted
        max_regions  keep an image's first so many usable ones; None: all
        attributes   by name, A values
        """
        edges = np.tile(self.sizes[image][:, ::-1], 2).astype(np.float64)  # width, height, width, height
        sides = boxes[:, 2:] - boxes[:, :2]
        with np.errstate(invalid="ignore"):  # NaN and infinity are told apart below
            inside = np.clip(boxes, 0, edges)
            moved = np.abs(inside - boxes).max(axis=1, initial=0) > MIN_SIDE
        # Judged in the precision the boxes are kept in, so that x2 > x1 holds for what the model sees.
        kept = inside.astype(np.float32)
        left = kept[:, 2:] - kept[:, :2]
        checks = [
            *reasons.items(),
            ("not finite", ~np.isfinite(boxes).all(axis=1)),
            ("zero area", ~(sides >= MIN_SIDE).all(axis=1)),
            ("outside the image", ((boxes[:, 2:] <= 0) | (boxes[:, :2] >= edges[:, :2])).any(axis=1)),
            ("zero area", ~(left >= MIN_SIDE).all(axis=1)),
        ]
        self.skipped: Counter[str] = Counter()
        good = np.ones(len(boxes), dtype=bool)
        for reason, bad in checks:
            self.skipped[reason] += int((good & bad).sum())
            good &= ~bad
        if max_regions is not None:
            before = np.cumsum(good) - good  # usable annotations ahead of this one, over all images
            starts = np.searchsorted(image, np.arange(len(self)))
            rank = before - before[starts[image]] if len(boxes) else before
            self.skipped["over max_regions"] = int((good & (rank >= max_regions)).sum())
            good &= rank < max_regions
        self.skipped = +self.skipped  # without the zeros

        self._boxes, self._labels = kept[good], label[good].astype(np.int64)
        counts = np.bincount(image[good], minlength=len(self))
        self._ptr = np.concatenate([[0], np.cumsum(counts)])
        self.clipped, self.without_boxes = int((moved & good).sum()), int((counts == 0).sum())
        self._attributes = {name: [values[i] for i in np.flatnonzero(good)] for name, values in attributes.items()}
        self._log()

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
        return len(self.file_names)

    def __getitem__(self, i: int) -> Sample:
        """Image `i` with its regions. InputError where the file cannot be decoded or has not the size annotated."""
        i = range(len(self))[i]
        path, annotated = self.folder / self.file_names[i], self._annotated(i)
        image = read_image(path, annotated=annotated, orientation=self.orientation, max_pixels=self.max_pixels)
        if (image.shape[2], image.shape[1]) != annotated:
            raise self._misfit(i, self._header(i))
        part = slice(self._ptr[i], self._ptr[i + 1])
        # Copies: a caller who changes a sample must not change the data set.
        boxes, labels = torch.from_numpy(self._boxes[part].copy()), torch.from_numpy(self._labels[part].copy())
        attributes = {name: values[part] for name, values in self._attributes.items()}
        return Sample(image, boxes, labels, self.file_names[i], attributes)

    def examine(self, i: int, decode: bool) -> tuple[InputError | None, bool]:
        """What is wrong with image `i`, and whether its orientation is ambiguous.

        decode  decode it in full; otherwise only its header and its end are read, unless it is deep
        """
        if self.file_names[i] in self.missing:
            return InputError(self.folder / self.file_names[i], "no such image file", "unpack it there"), False
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
        height, width = self.sizes[i].tolist()
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
        return torch.from_numpy(self.sizes.copy())

    def image_labels(self) -> list[Tensor]:
        """Every image's labels (int64 [R]), without opening one."""
        return list(torch.from_numpy(self._labels.copy()).split(np.diff(self._ptr).tolist()))

    def fingerprint(self) -> str:
        """A hash of the images' names and sizes and of all regions; other annotations give another."""
        digest = blake2b("\0".join(self.file_names).encode(errors="surrogatepass"), digest_size=8)
        for values in (self.sizes, self._ptr, self._labels, self._boxes):
            digest.update(np.ascontiguousarray(values).tobytes())
        return digest.hexdigest()
