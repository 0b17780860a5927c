"""Transforms from a `Sample` as a data set gives it to one as the model takes it: mirrored, resized, normalised."""

import re
from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from .sample import Sample

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# "left_" and "right_" anywhere a word begins (so never in "bright_"), "left " and "right " at the front only.
_SIDE = re.compile(r"(?<![^\W_])(?:left|right)(?=_)|^(?:left|right)(?= )")


def resized_size(height: int, width: int, short: int, long: int) -> tuple[int, int]:
    """(height, width) after `resize`: shorter side `short`, but the longer at most `long`; 0 lifts either rule."""
    if not short:
        return height, width
    scale = short / min(height, width)
    if long:
        scale = min(scale, long / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def resize(sample: Sample, short: int, long: int) -> Sample:
    """`sample` with a float32 image (still 0..255) of the size `resized_size` says, and its boxes to match.

    Bilinear with antialiasing. Boxes follow the ratio each axis really got, which rounding makes differ a little.
    """
    height, width = sample.image.shape[1:]
    size = resized_size(height, width, short, long)
    image, boxes = sample.image.float(), sample.boxes
    if size != (height, width):
        image = F.interpolate(image[None], size=size, mode="bilinear", align_corners=False, antialias=True)[0]
        ratio = torch.tensor([size[1] / width, size[0] / height] * 2, dtype=torch.float32)
        edge = torch.tensor([size[1], size[0]] * 2, dtype=torch.float32)
        boxes = torch.minimum(boxes * ratio, edge)  # float32 may round a box's far side just past the image's
    return replace(sample, image=image, boxes=boxes)


def normalise(image: Tensor) -> Tensor:
    """float32 [3, H, W] with ImageNet's mean and deviation taken out, from uint8 or float [3, H, W] in 0..255."""
    mean, std = (torch.tensor(values)[:, None, None] * 255 for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (image.float() - mean) / std


def left_right_swap(classes: Sequence[str]) -> Tensor:
    """int64 [C]: for each class the index of its mirror image ("left_arm" <-> "right_arm"), else its own."""
    index = {name: i for i, name in enumerate(classes)}
    other = {"left": "right", "right": "left"}
    partners = [_SIDE.sub(lambda match: other[match.group()], name) for name in classes]
    return torch.tensor([index.get(partner, i) for i, partner in enumerate(partners)], dtype=torch.int64)


def flip(sample: Sample, class_swap: Tensor) -> Sample:
    """`sample` mirrored left to right; labels go through `class_swap` (int64 [C], see `left_right_swap`)."""
    width = sample.image.shape[2]
    x1, y1, x2, y2 = sample.boxes.unbind(1)
    boxes = torch.stack([width - x2, y1, width - x1, y2], dim=1)
    return replace(sample, image=sample.image.flip(2), boxes=boxes, labels=class_swap[sample.labels])


def prepare(sample: Sample, short: int = 0, long: int = 0, class_swap: Tensor | None = None) -> Sample:
    """`sample` as the model takes it: mirrored where `class_swap` is given, resized, normalised float32."""
    if class_swap is not None:
        sample = flip(sample, class_swap)
    sample = resize(sample, short, long)
    return replace(sample, image=normalise(sample.image))
