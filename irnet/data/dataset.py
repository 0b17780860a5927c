"""What the program uses of a data set, and nothing else of it: the protocol `RegionDataset`. No data set's format."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from torch import Tensor

from ..errors import InputError
from .sample import Sample


class RegionDataset(Protocol):
    """One split of a data set: images, each with regions of known classes.

    classes          C names; a label is an index into them
    supercategories  for each class, the name of the group it belongs to, "" for none
    root             the folder of the data set, where a class_graph.json may lie
    path             the annotations: the file or folder that messages name
    split            the split's name
    skipped          how many annotations were left out, by reason
    """

    classes: list[str]
    supercategories: list[str]
    root: Path
    path: Path
    split: str

    @property
    def skipped(self) -> Mapping[str, int]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> Sample:
        """Image `i` with its regions. InputError where the file cannot be used; IndexError beyond the last."""

    def image_sizes(self) -> Tensor:
        """int64 [N, 2]: every image's (height, width), without opening one."""

    def image_labels(self) -> list[Tensor]:
        """Every image's labels (int64 [R]), without opening one."""

    def image_boxes(self) -> list[Tensor]:
        """Every image's boxes (float32 [R, 4]), without opening one."""

    def fingerprint(self) -> str:
        """A hash of all that training sees of the annotations; other annotations give another."""

    def examine(self, i: int, decode: bool) -> tuple[InputError | None, bool]:
        """What is wrong with image `i`, and whether its orientation is ambiguous (see `images.ambiguity`).

        decode  decode it in full; otherwise its header is enough
        """
