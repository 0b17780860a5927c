"""The annotations of a data set as arrays: what a reader makes of its files, and parts of that. Opens no file."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

MIN_SIDE = 1e-3  # pixels; a box narrower than this has no area worth reading
RARE = "of a class that is left out"


@dataclass(frozen=True)
class Column:
    """A value for each region, as an index into the distinct values."""

    codes: np.ndarray
    values: list[str]

    @classmethod
    def of(cls, values: Sequence[str]) -> "Column":
        """The column of texts, one for each region."""
        index: dict[str, int] = {}
        codes = np.fromiter((index.setdefault(value, len(index)) for value in values), np.int32, len(values))
        return cls(codes, list(index))

    def __getitem__(self, part: slice) -> list[str]:
        return [self.values[code] for code in self.codes[part].tolist()]


@dataclass(frozen=True)
class Table:
    """N images with R regions in C classes. The arrays may be a mapped file: nobody writes to them.

    image_ids   int64 [N], ascending where the data set numbers its images
    file_names  N names, as annotated
    sizes       int64 [N, 2], every image's (height, width) as annotated
    ptr         int64 [N + 1]; image i owns the regions ptr[i]:ptr[i + 1]
    labels      int32 [R], indices into `classes`
    boxes       float32 [R, 4], (x1, y1, x2, y2) in pixels, inside their image, none narrower than MIN_SIDE
    clipped     bool [R], which boxes were cut to their image (by more than rounding, MIN_SIDE)
    attributes  by name, a value for each region
    left_out    by reason, int32, the images of the annotations that are no region
    """

    classes: list[str]
    supercategories: list[str]
    image_ids: np.ndarray
    file_names: list[str]
    sizes: np.ndarray
    ptr: np.ndarray
    labels: np.ndarray
    boxes: np.ndarray
    clipped: np.ndarray
    attributes: dict[str, Column] = field(default_factory=dict)
    left_out: dict[str, np.ndarray] = field(default_factory=dict)

    def skipped(self) -> Counter[str]:
        """How many annotations were left out, by reason."""
        return +Counter({reason: len(images) for reason, images in self.left_out.items()})

    def counts(self) -> np.ndarray:
        """int64 [C]: the regions of each class."""
        return np.bincount(self.labels, minlength=len(self.classes))

    def select(self, images: np.ndarray) -> "Table":
        """Only the images at these indices (int64), in that order."""
        if np.array_equal(images, np.arange(len(self.file_names))):
            return self
        counts = np.diff(self.ptr)[images]
        ptr = np.concatenate([[0], np.cumsum(counts)])
        rows = np.repeat(self.ptr[images] - ptr[:-1], counts) + np.arange(ptr[-1])
        index = np.full(len(self.file_names), -1, np.int32)
        index[images] = np.arange(len(images))
        left_out = {reason: index[image] for reason, image in self.left_out.items()}
        chosen = replace(
            self,
            image_ids=self.image_ids[images],
            file_names=[self.file_names[i] for i in images.tolist()],
            sizes=self.sizes[images],
            left_out={reason: image[image >= 0] for reason, image in left_out.items()},
        )
        return chosen._rows(rows, ptr)

    def limit(self, most: int) -> "Table":
        """Only the first `most` regions of each image."""
        image = np.repeat(np.arange(len(self.file_names)), np.diff(self.ptr))
        return self._drop(np.arange(len(image)) - self.ptr[image] < most, image, "over max_regions")

    def relabel(self, classes: list[str], supercategories: list[str] | None = None) -> "Table":
        """The same with other classes, by name; regions of classes that are not among them are left out."""
        index = {name: i for i, name in enumerate(classes)}
        label = np.array([index.get(name, -1) for name in self.classes], np.int32)[self.labels]
        groups = dict(zip(self.classes, self.supercategories, strict=True))
        groups_kept = supercategories or [groups.get(name, "") for name in classes]
        image = np.repeat(np.arange(len(self.file_names)), np.diff(self.ptr))
        changed = replace(self, classes=classes, supercategories=groups_kept, labels=label)
        return changed._drop(label >= 0, image, RARE)

    def _drop(self, keep: np.ndarray, image: np.ndarray, reason: str) -> "Table":
        if keep.all():
            return self
        ptr = np.concatenate([[0], np.cumsum(np.bincount(image[keep], minlength=len(self.file_names)))])
        gone = {reason: image[~keep].astype(np.int32)}
        return replace(self, left_out=self.left_out | gone)._rows(np.flatnonzero(keep), ptr)

    def _rows(self, rows: np.ndarray, ptr: np.ndarray) -> "Table":
        attributes = {name: Column(column.codes[rows], column.values) for name, column in self.attributes.items()}
        own = {name: getattr(self, name)[rows] for name in ("labels", "boxes", "clipped")}
        return replace(self, ptr=ptr, attributes=attributes, **own)


@dataclass
class Annotations:
    """A annotations as they stand in the files of a data set, of N images.

    image       int64 [A], the indices of their images
    label       int64 [A], indices into the classes; -1 where a reason tells why there is none
    boxes       float64 [A, 4], (x1, y1, x2, y2) in pixels
    reasons     bool [A] each: annotations that are no region, by the reason that is counted
    attributes  by name, A texts
    ids         int64 [A], which order the annotations of an image; None: they stand in their order
    """

    image: np.ndarray
    label: np.ndarray
    boxes: np.ndarray
    reasons: dict[str, np.ndarray] = field(default_factory=dict)
    attributes: dict[str, Sequence[str]] = field(default_factory=dict)
    ids: np.ndarray | None = None


@dataclass
class Images:
    """N images: their numbers in the data set (int64 [N]), names, and (height, width) as annotated (int64 [N, 2])."""

    ids: np.ndarray
    file_names: list[str]
    sizes: np.ndarray


def make_table(classes: list[str], supercategories: list[str], images: Images, given: Annotations) -> Table:
    """The table of annotations, in the order of their images.

    A box partly outside its image is clipped. What cannot be a region is left out, by the first reason that holds:
    those given, "not finite", "zero area", "outside the image". An image that keeps no box stays.
    """
    if given.ids is None or (np.diff(given.ids) > 0).all():
        order = np.argsort(given.image, kind="stable")
    else:
        order = np.lexsort((given.ids, given.image))
    image, label = given.image[order], given.label[order]
    boxes = np.ascontiguousarray(given.boxes[order].T)  # [4, A]: numpy goes through a long axis at once
    edges = np.tile(np.ascontiguousarray(images.sizes.T)[::-1, image].astype(np.float64), (2, 1))  # width, height, ...
    with np.errstate(invalid="ignore", over="ignore"):  # NaN and infinity are told apart below
        sides = boxes[2:] - boxes[:2]
        inside = np.clip(boxes, 0, edges)
        moved = np.abs(inside - boxes).max(axis=0, initial=0) > MIN_SIDE
        # Judged in the precision the boxes are kept in, so that x2 > x1 holds for what the model sees.
        kept = inside.astype(np.float32)
    checks = [
        *((reason, bad[order]) for reason, bad in given.reasons.items()),
        ("not finite", ~np.isfinite(boxes).all(axis=0)),
        ("zero area", ~(sides >= MIN_SIDE).all(axis=0)),
        ("outside the image", ((boxes[2:] <= 0) | (boxes[:2] >= edges[:2])).any(axis=0)),
        ("zero area", ~(kept[2:] - kept[:2] >= MIN_SIDE).all(axis=0)),
    ]
    good = np.ones(len(image), dtype=bool)
    left_out: dict[str, np.ndarray] = {}
    for reason, bad in checks:
        gone = image[good & bad].astype(np.int32)
        left_out[reason] = np.concatenate([left_out[reason], gone]) if reason in left_out else gone
        good &= ~bad
    columns = {name: Column.of([values[i] for i in order[good]]) for name, values in given.attributes.items()}
    ptr = np.concatenate([[0], np.cumsum(np.bincount(image[good], minlength=len(images.file_names)))])
    return Table(
        classes,
        supercategories,
        images.ids,
        images.file_names,
        images.sizes,
        ptr,
        label[good].astype(np.int32),
        np.ascontiguousarray(kept.T[good]),
        moved[good],
        columns,
        {reason: gone for reason, gone in left_out.items() if len(gone)},
    )
