"""The forms in which operators take boxes, brought into the one that kernels take: sorted by image, with `ptr`."""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .checks import check, check_device, check_ragged

Boxes = (
    Tensor | Sequence[Tensor]
)  # [R, 4] with ptr; a list of one [n, 4] per image; [K, 5] with the image's index first


class SortedBoxes(NamedTuple):
    """Boxes sorted by image, and the order of what the caller gave, if that was another."""

    boxes: Tensor  # float32 [R, 4]
    ptr: Tensor  # int64 [B + 1]
    order: Tensor | None  # int64 [R]: the position in which the caller gave each region

    def sort(self, rows: Tensor) -> Tensor:
        """One row per region, from the caller's order into that of `boxes`."""
        return rows if self.order is None else _select(rows, self.order)

    def restore(self, rows: Tensor) -> Tensor:
        """One row per region, from the order of `boxes` into the caller's."""
        return rows if self.order is None else _select(rows, self.order.argsort())


def sort_boxes(
    name: str, boxes: Boxes, ptr: Tensor | None, like: Tensor, images: int | None = None, spatial_scale: float = 1.0
) -> SortedBoxes:
    """Check boxes in any of their forms, sort them by image and multiply them by `spatial_scale`.

    `like` says on which device an empty list is. Without `images`, the index in a [K, 5] is a label: it keeps regions
    of different images apart. No value of a tensor on a GPU is looked at.
    """
    check(0 < spatial_scale < math.inf, name, lambda: f"spatial_scale must be positive and finite, got {spatial_scale}")
    order = None
    if not isinstance(boxes, Tensor):
        check(ptr is None, name, lambda: "a list of boxes says which image owns which: ptr must be None")
        boxes, ptr = _from_list(name, boxes, like, images)
    elif ptr is None:
        check(
            boxes.dim() == 2 and boxes.shape[1] == 5 and boxes.dtype == torch.float32,
            name,
            lambda: (
                "without ptr, boxes must be a list of one [n, 4] per image or float32 [K, 5], "
                f"got {boxes.dtype} {list(boxes.shape)}"
            ),
        )
        boxes, ptr, order = _from_indexed(name, boxes, images)
    check_ragged(name, boxes, ptr, images)
    return SortedBoxes(boxes if spatial_scale == 1 else boxes * spatial_scale, ptr, order)


def _from_list(name: str, boxes: Sequence[Tensor], like: Tensor, images: int | None) -> tuple[Tensor, Tensor]:
    check(
        images is None or len(boxes) == images,
        name,
        lambda: f"boxes must be a list of one tensor per image, got {len(boxes)} for {images} images",
    )
    for index, own in enumerate(boxes):
        check(
            own.dim() == 2 and own.shape[1] == 4 and own.dtype == torch.float32,
            name,
            lambda i=index, t=own: f"boxes[{i}] must be float32 [n, 4], got {t.dtype} {list(t.shape)}",
        )
    if not boxes:
        return torch.empty(0, 4, device=like.device), torch.zeros(1, dtype=torch.int64, device=like.device)
    check_device(name, **{f"boxes[{index}]": own for index, own in enumerate(boxes)})
    ptr = torch.tensor([0, *itertools.accumulate(len(own) for own in boxes)], device=boxes[0].device)
    return torch.cat(list(boxes)), ptr


def _from_indexed(name: str, boxes: Tensor, images: int | None) -> tuple[Tensor, Tensor, Tensor]:
    # Always sorted: to see whether they are sorted already, a GPU's queue would have to be waited for.
    image, order = boxes[:, 0].sort(stable=True)
    if images is None:
        image, images = (image.diff(prepend=image[:1]) != 0).cumsum(0), boxes.shape[0]
    elif boxes.device.type == "cpu" and not torch.compiler.is_compiling():
        check(
            bool(((image >= 0) & (image < images)).all()),
            name,
            lambda: f"the images in column 0 of boxes must be in [0, {images}), got {image.min()} to {image.max()}",
        )
    ptr = torch.searchsorted(image, torch.arange(images + 1, dtype=image.dtype, device=image.device))
    return boxes[:, 1:].index_select(0, order), ptr, order


def _select(rows: Tensor, index: Tensor) -> Tensor:
    """Rows of `index`, with channels last in memory."""
    return rows.movedim(1, -1).index_select(0, index).movedim(-1, 1)
