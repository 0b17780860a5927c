"""What every data set gives (`Sample`), what the model takes (`Batch`), and the step from one to the other.

No data set's own layout or file format belongs here.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# "left_" and "right_" anywhere a word begins (so never in "bright_"), "left " and "right " at the front only.
_SIDE = re.compile(r"(?<![^\W_])(?:left|right)(?=_)|^(?:left|right)(?= )")


@dataclass
class Sample:
    """One image with its regions.

    image   uint8 [3, H, W], RGB
    boxes   float32 [R, 4], (x1, y1, x2, y2) in pixels of `image`, inside it, x2 > x1 and y2 > y1; R may be 0
    labels  int64 [R], indices into the data set's `classes`
    name    the image's file name, for messages and result files
    kinds   per region, why its class can or cannot be told from its looks (generated scenes only)
    """

    image: Tensor
    boxes: Tensor
    labels: Tensor
    name: str
    kinds: list[str] = field(default_factory=list)


@dataclass
class Batch:
    """B images of any sizes with R regions in all, sorted by image.

    images  B float32 tensors [3, H_b, W_b], normalised
    boxes   float32 [R, 4] in pixels of the image as it is in `images`
    ptr     int64 [B + 1]; image b owns the regions ptr[b]:ptr[b + 1], possibly none
    labels  int64 [R]
    names   B file names
    kinds   R strings, or empty
    """

    images: list[Tensor]
    boxes: Tensor
    ptr: Tensor
    labels: Tensor
    names: list[str]
    kinds: list[str] = field(default_factory=list)

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on `device`."""
        move = lambda t: t.to(device, non_blocking=True)  # noqa: E731
        images = [move(image) for image in self.images]
        return Batch(images, move(self.boxes), move(self.ptr), move(self.labels), self.names, self.kinds)

    def split(self, parts: int) -> list["Batch"]:
        """At most `parts` batches of ceil(B / parts) images, the last with what is left."""
        size = -(-len(self.images) // parts)
        pieces = []
        for start in range(0, len(self.images), size):
            ptr = self.ptr[start : start + size + 1]
            rows = slice(int(ptr[0]), int(ptr[-1]))
            images, names = self.images[start : start + size], self.names[start : start + size]
            pieces.append(Batch(images, self.boxes[rows], ptr - ptr[0], self.labels[rows], names, self.kinds[rows]))
        return pieces


def resized_size(height: int, width: int, short: int | None, long: int | None) -> tuple[int, int]:
    """(height, width) after `resize`: shorter side `short`, but the longer at most `long`; None lifts either rule."""
    if short is None:
        return height, width
    scale = short / min(height, width)
    if long is not None:
        scale = min(scale, long / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def resize(sample: Sample, short: int | None, long: int | None) -> Sample:
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


def prepare(
    sample: Sample,
    short: int | None = None,
    long: int | None = None,
    flipped: bool = False,
    class_swap: Tensor | None = None,
) -> Sample:
    """`sample` as the model takes it: mirrored if `flipped` (which needs `class_swap`), resized, normalised float32."""
    if flipped:
        sample = flip(sample, class_swap)
    sample = resize(sample, short, long)
    return replace(sample, image=normalise(sample.image))


def collate(samples: Sequence[Sample]) -> Batch:
    """One `Batch` of `samples` that `prepare` has been through, in the order given. At least one sample."""
    counts = torch.tensor([0, *(len(sample.labels) for sample in samples)], dtype=torch.int64)
    return Batch(
        images=[sample.image for sample in samples],
        boxes=torch.cat([sample.boxes for sample in samples]),
        ptr=counts.cumsum(0),
        labels=torch.cat([sample.labels for sample in samples]),
        names=[sample.name for sample in samples],
        kinds=[kind for sample in samples for kind in sample.kinds],
    )
