"""COCO instances, in the layouts of `layouts`. No transforms, no batching."""

import os
from pathlib import Path

import numpy as np

from ..config import DataConfig
from ..errors import InputError
from . import coco_file, layouts
from .annotated import AnnotatedImages
from .cache import Sources, kept
from .images import MAX_PIXELS
from .table import Annotations, Images, Table, make_table


def _group(supercategory: object) -> str:
    """A class's group; converters write "none" or the like where there is none."""
    name = "" if supercategory is None else str(supercategory).strip()
    return "" if name.lower() in ("", "none", "null", "nan", "n/a", "undefined") else name


class CocoDataset(AnnotatedImages):
    """The images of one COCO split, sorted by id; classes by category id, an image's regions by annotation id."""

    attribute_keys: tuple[str, ...] = ()  # of annotations, whose values are attributes of regions where any has them

    def __init__(
        self,
        root: str | os.PathLike,
        split: str,
        max_regions: int | None = None,
        *,
        share: layouts.Share | None = None,
        orientation: str = "auto",
        max_pixels: int = MAX_PIXELS,
        require_images: bool = True,
        cache: str = "off",
    ):
        """Reads the split's annotation file and lists (but does not open) the images.

        split           a name that `layouts.annotation_files` finds, or a path of a JSON file relative to `root`
        max_regions     keep an image's first so many regions by annotation id
        share           take a part of the file's images
        orientation     see `images.read_image`
        max_pixels      see `images.read_image`
        require_images  refuse a set that lacks an image; otherwise `missing` names those
        cache           where the table is kept, see `cache.kept`
        InputError for whatever is missing or contradicts itself.
        """
        self.root, self.split, self.share = Path(root), split, share
        self.orientation, self.max_pixels = orientation, max_pixels
        if max_regions is not None and max_regions < 1:
            raise InputError("--max-regions", f"{max_regions} is not a number of regions", "give 1 or more")
        self.path = layouts.annotation_file(self.root, split)
        key = f"coco {os.path.relpath(self.path, self.root)} {' '.join(self.attribute_keys)}"
        sources = Sources(self.root, [self.path], key, self.path.stem)
        table = kept(sources, cache, lambda: _read(self.path, self.attribute_keys))
        # Names are looked for before a share is taken: whether their last parts differ is judged on the whole file.
        self.folder, self.file_names, missing = layouts.image_folder(
            self.root, split, table.file_names, self.path, require_images
        )
        self.missing = set(missing)
        if share is not None:
            table = self._take(share, table)
        self.use(table, max_regions)

    def _take(self, share: layouts.Share, table: Table) -> Table:
        """Leave only the images of the share. The whole file was read, so that both parts are refused for the same."""
        if len(self.file_names) < 2:
            raise InputError(self.path, "its one image cannot be trained on and held out", "add images or a val split")
        chosen = np.flatnonzero(share.select(table.file_names))
        self.file_names = [self.file_names[i] for i in chosen.tolist()]
        self.missing &= set(self.file_names)
        return table.select(chosen)

    @classmethod
    def open(cls, config: DataConfig, part: str, require_images: bool = True) -> "CocoDataset":
        """Open the `part` "train" or "val", of one file a share where there is no other. For the registry."""
        split, shared = layouts.choose_split(Path(config.root), part, config.train_split, config.val_split)
        data = cls(
            config.root,
            split,
            max_regions=(config.max_regions or None) if part == "train" else None,
            share=layouts.Share(part == "val", config.val_share, config.split_seed) if shared else None,
            orientation=config.orientation,
            max_pixels=config.max_pixels,
            require_images=require_images,
            cache=config.cache,
        )
        if require_images:
            data.warn_of_turned_images()
        return data


def _read(path: Path, attribute_keys: tuple[str, ...]) -> Table:
    """What an annotation file holds: images by id, classes by category id, an image's regions by annotation id."""
    columns = coco_file.read_columns(path, attribute_keys)
    images, given = columns.images, columns.annotations
    for numbers, what in ((images.ids, "image"), (columns.category_ids, "category"), (columns.ids, "annotation")):
        coco_file.unique(numbers, path, what, "id")
    coco_file.unique(columns.classes, path, "category", "name")
    image_order, class_order = (np.argsort(ids, kind="stable") for ids in (images.ids, columns.category_ids))
    images = Images(
        images.ids[image_order],
        [images.file_names[i] for i in image_order.tolist()],
        images.sizes[image_order],
    )
    for i in np.flatnonzero((images.sizes < 1).any(axis=1))[:1]:
        height, width = images.sizes[i]
        raise InputError(path, f"image {images.ids[i]} has the size {width} x {height}", coco_file.CURE)
    image = coco_file.positions(images.ids, given.image, columns.ids, "image", path)
    label = coco_file.positions(columns.category_ids[class_order], given.label, columns.ids, "category", path)
    given = Annotations(image, label, given.boxes, given.reasons, given.attributes, columns.ids)
    classes = [columns.classes[i] for i in class_order]
    return make_table(classes, [_group(columns.supercategories[i]) for i in class_order], images, given)
