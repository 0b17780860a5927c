"""The regions of a batch as one value, which the modules that reason take whole."""

from typing import NamedTuple

from torch import Tensor


class Regions(NamedTuple):
    """What the modules know of R regions in B images. Nothing in it is differentiated."""

    boxes: Tensor  # [R, 4], (x1, y1, x2, y2) in pixels of the image
    cells: Tensor  # [R, 4], the same in cells of the feature map
    ptr: Tensor  # [B + 1]; image b has the regions ptr[b] to ptr[b + 1]
    patches: Tensor  # [R, F, P, P], crops of the feature map
    feature: Tensor  # [R, F'], the ConvNet's feature
    logits: Tensor  # [R, M, C], the last prediction of each of M modules
