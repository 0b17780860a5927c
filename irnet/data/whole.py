"""Data sets whose splits are parts of one table: which images a split takes, and which names are its classes."""

import gzip
import logging
import zlib
from pathlib import Path
from typing import ClassVar

import numpy as np

from ..config import DataConfig
from ..errors import InputError
from .annotated import AnnotatedImages
from .layouts import Share
from .table import Table

log = logging.getLogger("irnet")


class WholeSet(AnnotatedImages):
    """One split of a data set that is read as a whole. A format sets the fields below and says what its splits are.

    whole       the table of all images
    candidates  the names of splits that are looked for as each part, where the user gives none
    rare_names  whether names that occur less often than `data.min_count` are no classes
    """

    whole: Table
    candidates: ClassVar[dict[str, tuple[str, ...]]]
    rare_names: ClassVar[bool] = True

    def images_of(self, split: str) -> np.ndarray | None:
        """The indices of a split's images, ascending; None where there is no such split."""
        raise NotImplementedError

    def known_classes(self) -> list[str] | None:
        """The classes where the data set lists them; None: the names that occur often enough in the training part."""
        return None

    def use_part(self, config: DataConfig, part: str) -> None:
        """Take the part "train" or "val". InputError where a split that the user names is not there.

        Without a split for training all images but those held out are; without one held out a share of those for
        training is.
        """
        train_split, train = self._find("train", config.train_split)
        val_split, val = self._find("val", config.val_split)
        everything = np.arange(len(self.whole.file_names))
        if train is None:
            train = everything if val is None else np.setdiff1d(everything, val)
        elif val is not None and part == "train" and (both := len(np.intersect1d(train, val))):
            text = "%s: %d of the %d images to train on (%s) %s held out by %s, too"
            log.warning(text, self.path, both, len(train), train_split, "is" if both == 1 else "are", val_split)
        self.split, self.share = (train_split or "all") if part == "train" else (val_split or "held out"), None
        names = self.whole.file_names
        held_out = val
        if val is None:
            if len(train) < 2:
                raise InputError(self.path, f"has {len(train)} images to train on and hold out", "add images")
            chosen = Share(True, config.val_share, config.split_seed).select([names[i] for i in train.tolist()])
            train, held_out = train[~chosen], train[chosen]
            self.share = Share(part == "val", config.val_share, config.split_seed)
        classes = self.known_classes()
        if classes is None:
            counted = self.whole.select(train)
            least = config.min_count if self.rare_names else 1
            often = counted.counts() >= least
            classes = sorted(name for name, keep in zip(counted.classes, often.tolist(), strict=True) if keep)
            if not classes:
                if least == 1:
                    raise InputError(self.path, "the training images have no usable region", "annotate some of them")
                trouble = f"no name occurs {least} times in the training images"
                raise InputError(self.path, trouble, "lower data.min_count")
        table = self.whole.select(train if part == "train" else held_out).relabel(classes)
        self.file_names = table.file_names
        self.missing &= set(self.file_names)
        del self.whole
        self.use(table, (config.max_regions or None) if part == "train" else None)

    def _find(self, part: str, named: str) -> tuple[str, np.ndarray | None]:
        if named:
            images = self.images_of(named)
            if images is None:
                where = f"data.{part}_split"
                raise InputError(where, f"{self.root} has no split {named!r}", "name one that is there, or none")
            return named, images
        for split in self.candidates[part]:
            images = self.images_of(split)
            if images is not None and len(images):
                return split, images
        return "", None

    def refuse_missing(self, require_images: bool) -> None:
        """InputError where an image of the split is not there, if all must be."""
        for i, name in enumerate(self.file_names):
            if require_images and name in self.missing:
                trouble = f"no such image file ({len(self.missing)} of {len(self)} are missing)"
                raise InputError(self.folder / self.file_names[i], trouble, "unpack the images there")


def read_list(path: Path) -> list[str] | None:
    """The lines of a text file, or of it with .gz behind, without blanks around them; None where neither is there."""
    for own, opener in ((path, open), (path.with_name(path.name + ".gz"), gzip.open)):
        if own.is_file():
            try:
                with opener(own, "rt", encoding="utf-8") as file:
                    return [line.strip() for line in file.read().splitlines()]
            except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
                raise InputError(own, f"cannot be read ({error})", "fetch it again") from None
    return None


def listed(lines: list[str], names: list[str], path: Path) -> np.ndarray:
    """The indices of the images that lines name, ascending. InputError for a line that names none or one twice."""
    index = {name: i for i, name in enumerate(names)}
    lines = [line for line in lines if line]
    unknown = [line for line in lines if line not in index]
    if unknown:
        trouble = f"lists {unknown[0]}, which has no annotations ({len(unknown)} of {len(lines)} such lines)"
        raise InputError(path, trouble, "unpack the whole data set, or take those lines out")
    if len(set(lines)) < len(lines):
        raise InputError(path, "lists an image twice", "take one of the lines out")
    return np.array(sorted(index[line] for line in lines), np.int64)
