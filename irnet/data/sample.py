"""The records that data travels in: what every data set gives (`Sample`) and what the model takes (`Batch`)."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Sample:
    """One image with its regions.

    image       uint8 [3, H, W], RGB
    boxes       float32 [R, 4], (x1, y1, x2, y2) in pixels of `image`, inside it, x2 > x1 and y2 > y1; R may be 0
    labels      int64 [R], indices into the data set's `classes`
    name        the image's file name, for messages and result files
    attributes  by name, a value for each region; the same names in all samples of a data set. Evaluation tells the
                accuracy for every value, the model never sees them
    """

    image: Tensor
    boxes: Tensor
    labels: Tensor
    name: str
    attributes: dict[str, list[str]] = field(default_factory=dict)


@dataclass
class Batch:
    """B images of any sizes with R regions in all, sorted by image.

    images      B float32 tensors [3, H_b, W_b], normalised
    boxes       float32 [R, 4] in pixels of the image as it is in `images`
    ptr         int64 [B + 1]; image b owns the regions ptr[b]:ptr[b + 1], possibly none
    labels      int64 [R]
    names       B file names
    attributes  by name, R values
    whole       the number of images of the batch of which these are a process's share; None: these are all
    """

    images: list[Tensor]
    boxes: Tensor
    ptr: Tensor
    labels: Tensor
    names: list[str]
    attributes: dict[str, list[str]] = field(default_factory=dict)
    whole: int | None = None

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on `device`."""
        move = lambda t: t.to(device, non_blocking=True)  # noqa: E731
        images = [move(image) for image in self.images]
        boxes, ptr, labels = move(self.boxes), move(self.ptr), move(self.labels)
        return Batch(images, boxes, ptr, labels, self.names, self.attributes, self.whole)

    def split(self, parts: int) -> list["Batch"]:
        """At most `parts` batches of ceil(B / parts) images, the last with what is left."""
        size = -(-len(self.images) // parts)
        pieces = []
        for start in range(0, len(self.images), size):
            ptr = self.ptr[start : start + size + 1]
            rows = slice(int(ptr[0]), int(ptr[-1]))
            images, names = self.images[start : start + size], self.names[start : start + size]
            attributes = {name: values[rows] for name, values in self.attributes.items()}
            pieces.append(Batch(images, self.boxes[rows], ptr - ptr[0], self.labels[rows], names, attributes))
        return pieces


def collate(samples: Sequence[Sample]) -> Batch:
    """One `Batch` of `samples` that `prepare` has been through, in the order given. At least one sample."""
    counts = torch.tensor([0, *(len(sample.labels) for sample in samples)], dtype=torch.int64)
    return Batch(
        images=[sample.image for sample in samples],
        boxes=torch.cat([sample.boxes for sample in samples]),
        ptr=counts.cumsum(0),
        labels=torch.cat([sample.labels for sample in samples]),
        names=[sample.name for sample in samples],
        attributes={name: [v for s in samples for v in s.attributes[name]] for name in samples[0].attributes},
    )
