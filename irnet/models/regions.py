"""The regions of a batch as one value, which the modules that reason take whole."""

from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor


class Regions(NamedTuple):
    """What the modules know of R regions in B images. Nothing in it is differentiated."""

    boxes: Tensor  # [R, 4], (x1, y1, x2, y2) in pixels of the image
    cells: Tensor  # [R, 4], the same in cells of the feature map
    ptr: Tensor  # [B + 1]; image b has the regions ptr[b] to ptr[b + 1]
    patches: Tensor  # [R, F, P, P], crops of the feature map
    feature: Tensor  # [R, F'], the ConvNet's feature
    logits: Tensor | None  # [R, M, C], the last prediction of each of M modules; None before the first

    def split(self, size: int) -> Iterator["Regions"]:
        """The same in parts of at most `size` regions, each with the `ptr` of all images."""
        for start in range(0, len(self.boxes), size):
            rows = slice(start, start + size)
            ptr = self.ptr.clamp(start, start + size) - start
            per_region = (t if t is None else t[rows] for t in (self.patches, self.feature, self.logits))
            yield Regions(self.boxes[rows], self.cells[rows], ptr, *per_region)
