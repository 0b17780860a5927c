"""Data sets by name. Adding one is a line here, and a file beside this one that opens it; none is imported before."""

import dataclasses
import pkgutil
from typing import TYPE_CHECKING, NamedTuple

from ..errors import InputError
from ..progress import Progress

if TYPE_CHECKING:
    from ..config import DataConfig
    from .dataset import RegionDataset


class Entry(NamedTuple):
    """How a data set is opened, and what holds where the settings leave it open.

    opener  MODULE:NAME of a function of the settings (DataConfig), the part "train" or "val", and whether every image
            must be there (else the annotations alone are read), which gives a `RegionDataset` or raises InputError
    """

    opener: str
    root: str = ""
    train_split: str = ""
    val_split: str = ""


DATASETS = {
    "coco": Entry("irnet.data.coco:CocoDataset.open"),
    "ade20k": Entry("irnet.data.ade20k:Ade20k"),
    "vg": Entry("irnet.data.visual_genome:VisualGenome"),
    "voc": Entry("irnet.data.voc:Voc"),
    "scenes": Entry("irnet.data.scenes:Scenes.open", root="data/scenes"),
}


def open_dataset(config: "DataConfig", part: str, require_images: bool = True) -> "RegionDataset":
    """Open one part of the configured data set.

    Args:
        config: Settings of the data.
        part: "train" for the training part, "val" for the held-out part.
        require_images: Whether every image must be there; without, the annotations alone are read.

    Returns:
        The data set.

    Raises:
        InputError: There is none of that name, or it cannot be found or read.
    """
    if config.name not in DATASETS:
        raise InputError("--data", f"no data set is called {config.name!r}", f"choose one of {', '.join(DATASETS)}")
    entry = DATASETS[config.name]
    filled = {key: getattr(config, key) or getattr(entry, key) for key in ("root", "train_split", "val_split")}
    config = dataclasses.replace(config, **filled)
    if not config.root:
        raise InputError("--data-root", "is not given", "name the folder of the data set")
    with Progress(f"opening {config.root}, {part}"):
        return pkgutil.resolve_name(entry.opener)(config, part, require_images)
