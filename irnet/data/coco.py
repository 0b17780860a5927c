"""COCO instances, in the layouts of `layouts`. No transforms, no batching."""

import os
from pathlib import Path

import numpy as np

from ..config import DataConfig
from ..errors import InputError
from . import coco_file, layouts
from .annotated import AnnotatedImages
from .images import MAX_PIXELS


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
    ):
        """Reads the split's annotation file and lists (but does not open) the images.

        split           a name that `layouts.annotation_files` finds, or a path of a JSON file relative to `root`
        max_regions     keep an image's first so many regions by annotation id
        share           take a part of the file's images
        orientation     see `images.read_image`
        max_pixels      see `images.read_image`
        require_images  refuse a set that lacks an image; otherwise `missing` names those
        InputError for whatever is missing or contradicts itself.
        """
        self.root, self.split, self.share = Path(root), split, share
        self.orientation, self.max_pixels = orientation, max_pixels
        if max_regions is not None and max_regions < 1:
            raise InputError("--max-regions", f"{max_regions} is not a number of regions", "give 1 or more")
        self.path = layouts.annotation_file(self.root, split)
        tables = coco_file.read_tables(self.path)
        self._read_categories(tables["categories"])
        self._read_images(tables["images"])
        # Names are looked for before a share is taken: whether their last parts differ is judged on the whole file.
        self._annotated_names = self.file_names
        self.folder, self.file_names, missing = layouts.image_folder(
            self.root, split, self._annotated_names, self.path, require_images
        )
        self.missing = set(missing)
        self._read_annotations(tables["annotations"], max_regions)

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
        )
        if require_images:
            data.warn_of_turned_images()
        return data

    def _read_categories(self, rows: list[dict]) -> None:
        ids = coco_file.integers(rows, "id", self.path, "category")
        names = coco_file.texts(rows, "name", self.path, "category")
        coco_file.unique(ids.tolist(), self.path, "category", "id")
        coco_file.unique(names, self.path, "category", "name")
        order = np.argsort(ids, kind="stable")
        self.category_ids = ids[order]
        self.classes = [names[i] for i in order]
        self.supercategories = [_group(rows[i].get("supercategory")) for i in order]

    def _read_images(self, rows: list[dict]) -> None:
        ids = coco_file.integers(rows, "id", self.path, "image")
        coco_file.unique(ids.tolist(), self.path, "image", "id")
        order = np.argsort(ids, kind="stable")
        self.image_ids = ids[order]
        sides = [coco_file.integers(rows, key, self.path, "image")[order] for key in ("height", "width")]
        self.sizes = np.stack(sides, axis=1)
        for i in np.flatnonzero((self.sizes < 1).any(axis=1))[:1]:
            height, width = self.sizes[i]
            raise InputError(self.path, f"image {self.image_ids[i]} has the size {width} x {height}", coco_file.CURE)
        for row in rows:  # LVIS names the folder and the file at the end of an address
            if "file_name" not in row and isinstance(row.get("coco_url"), str):
                row["file_name"] = "/".join(row["coco_url"].split("/")[-2:])
        names = coco_file.texts(rows, "file_name", self.path, "image")
        self.file_names = [names[i] for i in order]

    def _read_annotations(self, rows: list[dict], max_regions: int | None) -> None:
        integers = lambda key, **more: coco_file.integers(rows, key, self.path, "annotation", **more)  # noqa: E731
        ids, images, categories, crowd = (
            *map(integers, ("id", "image_id", "category_id")),
            integers("iscrowd", default=0) != 0,
        )
        coco_file.unique(ids.tolist(), self.path, "annotation", "id")
        image = coco_file.positions(self.image_ids, images, ids, "image", self.path)
        label = coco_file.positions(self.category_ids, categories, ids, "category", self.path)

        corners = coco_file.corners(rows, self.path)
        if self.share is not None:
            image, kept_rows = self._take_share(image)
            rows = [rows[i] for i in kept_rows]
            ids, label, crowd, corners = ids[kept_rows], label[kept_rows], crowd[kept_rows], corners[kept_rows]

        order = np.lexsort((ids, image))
        attributes = {
            key: [str(rows[i].get(key, "")) for i in order]
            for key in self.attribute_keys
            if any(key in row for row in rows)
        }
        reasons = {"iscrowd": crowd[order]}
        self.keep_usable(image[order], label[order], corners[order], reasons, max_regions, attributes)

    def _take_share(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Leave only the images of the share; of its annotations, the index of their image and of their row.

        image  int64 [A], of every annotation in the file
        The whole file was checked before, so that both of its parts are refused for the same reasons.
        """
        if len(self.file_names) < 2:
            raise InputError(self.path, "its one image cannot be trained on and held out", "add images or a val split")
        chosen = self.share.select(self._annotated_names)
        self.image_ids, self.sizes = self.image_ids[chosen], self.sizes[chosen]
        self.file_names = [name for name, keep in zip(self.file_names, chosen, strict=True) if keep]
        self.missing &= set(self.file_names)
        rows = np.flatnonzero(chosen[image])
        return (np.cumsum(chosen) - 1)[image[rows]], rows
