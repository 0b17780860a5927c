"""Any data set of image files written in COCO's format. Changes neither images nor what is read."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from .. import files
from ..config import Config
from ..data.annotated import AnnotatedImages
from ..data.registry import open_dataset
from ..errors import InputError
from ..progress import Progress

IMAGES = ("link", "copy", "none")
CHUNK = 10_000  # rows that are written at once


def convert(config: Config, output: Path, images: str, say: Callable[[str], None]) -> None:
    """Write both splits as `annotations/instances_train.json` and `instances_val.json` below `output`.

    images  "link" puts a link to every image into `output`/train and `output`/val, "copy" a copy, "none" nothing
    InputError where the data set cannot be read, a file cannot be written, or one of the user's would be overwritten.
    """
    opened = {}
    for part in ("train", "val"):
        data = open_dataset(config.data, part, require_images=images != "none")
        if not isinstance(data, AnnotatedImages):
            raise InputError("--data", f"{config.data.name} is not made of image files", "choose another data set")
        if output.resolve() == data.root.resolve():
            raise InputError("--output-dir", f"{output} is the data set itself", "give another folder")
        opened[part] = data
    paths = {part: output / "annotations" / f"instances_{part}.json" for part in opened}
    for path in paths.values():
        if os.path.lexists(path):
            raise InputError(path, "is there already", "give --output-dir another folder, or take that file away")
    if images != "none":
        _refuse_own_images(opened, output)
    for part, data in opened.items():
        if images != "none":
            _place(data, output / part, images)
        path = paths[part]
        files.write_with(path, lambda temporary, own=data: _write(own, temporary))
        say(f"{path}: {len(data)} images, {len(data.table.labels)} regions, {len(data.classes)} classes")


def _write(data: AnnotatedImages, path: Path) -> None:
    table = data.table
    sizes = table.sizes.tolist()
    images = (
        {"id": number, "file_name": name, "width": width, "height": height}
        for number, name, (height, width) in zip(table.image_ids.tolist(), data.file_names, sizes, strict=True)
    )
    groups = [{"supercategory": group} if group else {} for group in table.supercategories]
    categories = (
        {"id": i, "name": name} | group for i, (name, group) in enumerate(zip(table.classes, groups, strict=True), 1)
    )
    with open(path, "w", encoding="utf-8") as file:
        file.write("{")
        for key, rows in (("images", images), ("categories", categories), ("annotations", _annotations(data))):
            file.write(f'{"" if key == "images" else ", "}"{key}": [')
            for i, row in enumerate(rows):
                file.write(("" if i == 0 else ",\n") + json.dumps(row))
            file.write("]")
        file.write("}\n")


def _annotations(data: AnnotatedImages):
    """A row for each region; its numbers are the shortest that give the same box when they are read."""
    table = data.table
    image_of = np.repeat(table.image_ids, np.diff(table.ptr))
    with Progress(f"writing {data.split}", len(table.labels), "region") as progress:
        for start in range(0, len(table.labels), CHUNK):
            part = slice(start, start + CHUNK)
            corners = table.boxes[part].astype(str).astype(np.float64)  # 10.1, not the double nearest to float32's 10.1
            corners[:, 2:] -= corners[:, :2]
            own = {name: column[part] for name, column in table.attributes.items()}
            columns = zip(image_of[part].tolist(), table.labels[part].tolist(), corners.tolist(), strict=True)
            for i, (image, label, box) in enumerate(columns):
                row = {"id": start + i + 1, "image_id": image, "category_id": label + 1, "bbox": box}
                row |= {"area": box[2] * box[3], "iscrowd": 0}
                yield row | {name: values[i] for name, values in own.items()}
            progress.update(len(corners))


def _refuse_own_images(opened: dict[str, AnnotatedImages], output: Path) -> None:
    """InputError where a link or a copy would take the place of an image of the data set."""
    overwritten = {}
    for part, data in opened.items():
        for name in data.file_names:
            path = output / part / name
            if path.is_file() and not path.is_symlink():
                stat = path.stat()
                overwritten[stat.st_dev, stat.st_ino] = path
    if not overwritten:
        return
    for data in opened.values():
        for name in data.file_names:
            if not (source := data.folder / name).is_file():
                continue
            stat = source.stat()
            if (stat.st_dev, stat.st_ino) in overwritten:
                trouble = f"the image {overwritten[stat.st_dev, stat.st_ino]} of the data set would be overwritten"
                raise InputError("--output-dir", trouble, "give another folder, or take --images none")


def _place(data: AnnotatedImages, folder: Path, images: str) -> None:
    """Link or copy every image under its name, each in one step: what stood there stays whole until then."""
    with Progress(f"images of {data.split}", len(data), "image") as progress:
        for name in data.file_names:
            source, path = (data.folder / name).resolve(), folder / name
            if not path.resolve().is_relative_to(folder.resolve()) and not path.is_symlink():
                raise InputError(data.path, f"the image {name} lies outside its folder", "take --images none")
            with files.writing(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                temporary = path.with_name(".irnet.tmp")
                temporary.unlink(missing_ok=True)
                try:
                    if images == "link":
                        os.symlink(source, temporary)
                    else:
                        shutil.copyfile(source, temporary)
                    os.replace(temporary, path)
                finally:
                    temporary.unlink(missing_ok=True)
            progress.update()
