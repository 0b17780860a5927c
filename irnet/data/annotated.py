"""Image files whose annotations are in memory: all of a `RegionDataset` but the reading, which each data set adds."""

import contextlib
import logging
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
from .table import Table

LOOKED_AT = 256  # headers that are read to warn of turned photographs; `irnet data check` reads all

log = logging.getLogger("irnet")


class AnnotatedImages(Dataset):
    """The images of one split with a region for every usable annotated box.

    A box partly outside its image is clipped; one that cannot be a region is skipped and counted. An image that keeps
    no box stays, with R = 0. A reader sets the fields below (see also `RegionDataset`), then calls `use`.

    skipped        how many annotations were left out, by reason: those of the reader, "not finite", "zero area",
                   "outside the image", "of a class that is left out", "over max_regions"
    clipped        how many boxes were cut to their image (by more than rounding, 1e-3 pixels)
    without_boxes  how many images have no region
    """

    classes: list[str]
    supercategories: list[str]
    root: Path
    path: Path
    split: str
    share: Share | None  # which of the file's images the split takes; None: all
    folder: Path  # where the images lie
    file_names: list[str]  # the images' names in there
    missing: set[str]  # the names of images that are not there
    orientation: str  # see `images.read_image`
    max_pixels: int
    table: Table  # what is read of the annotations

    def use(self, table: Table, max_regions: int | None = None) -> None:
        """Take a table's regions, and log how many those are.

        max_regions  keep an image's first so many; None: all
        """
        table = table if max_regions is None else table.limit(max_regions)
        self.table, self.classes, self.supercategories = table, table.classes, table.supercategories
        self.sizes, self.image_ids = table.sizes, table.image_ids
        self.skipped = table.skipped()
        self.clipped, self.without_boxes = int(table.clipped.sum()), int((np.diff(table.ptr) == 0).sum())
        self._log()

    def _log(self) -> None:
        share = f" ({self.share})" if self.share else ""
        text = f"{self.path}{share}: {len(self)} images ({self.without_boxes} without boxes), "
        text += f"{len(self.table.labels)} boxes in {len(self.classes)} classes; {self.clipped} clipped to the image; "
        text += "skipped: "
        text += ", ".join(f"{count} {reason}" for reason, count in sorted(self.skipped.items())) or "none"
        log.info(text)

    def warn_of_turned_images(self) -> None:
        """Log how many of up to LOOKED_AT images carry an EXIF orientation that their size does not settle."""
        looked_at = np.unique(np.linspace(0, len(self) - 1, LOOKED_AT).astype(int))
        count = 0
        for i in looked_at.tolist():
            with contextlib.suppress(InputError):  # such an image is reported where it is used
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
        table = self.table
        part = slice(*table.ptr[i : i + 2].tolist())
        # Copies: a caller who changes a sample must not change the data set.
        boxes, labels = (
            torch.from_numpy(table.boxes[part].copy()),
            torch.from_numpy(table.labels[part].astype(np.int64)),
        )
        attributes = {name: column[part] for name, column in table.attributes.items()}
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
        labels = torch.from_numpy(self.table.labels.astype(np.int64))
        return list(labels.split(np.diff(self.table.ptr).tolist()))

    def image_boxes(self) -> list[Tensor]:
        """Every image's boxes (float32 [R, 4]), without opening one."""
        return list(torch.from_numpy(self.table.boxes.copy()).split(np.diff(self.table.ptr).tolist()))

    def fingerprint(self) -> str:
        """A hash of the images' names and sizes and of all regions; other annotations give another."""
        digest = blake2b("\0".join(self.file_names).encode(errors="surrogatepass"), digest_size=8)
        table = self.table
        for values in (self.sizes, table.ptr, table.labels.astype(np.int64), table.boxes):
            digest.update(np.ascontiguousarray(values).tobytes())
        return digest.hexdigest()
