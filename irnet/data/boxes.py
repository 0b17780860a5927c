"""Boxes that a user gives for images of their own: reading the files and refusing what cannot be a region."""

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor

from ..errors import InputError
from . import coco_file

_FORMAT = "give a JSON list of [x1, y1, x2, y2] or of {'box': [...], 'name': ...}, or x1 y1 x2 y2 on each line"


@dataclass
class Boxes:
    """The boxes of one image.

    boxes      float32 [R, 4], (x1, y1, x2, y2) in pixels
    names      R names that the file gives, "" for none; or empty
    annotated  the (width, height) of the image they were made for, where the file tells
    where      the file they come from
    """

    boxes: Tensor
    names: list[str]
    annotated: tuple[int, int] | None
    where: str | os.PathLike


def boxes_of(images: Sequence[Path], paths: Sequence[str | os.PathLike]) -> list[Boxes]:
    """The boxes of each image: from one file in COCO's format, else from as many files as there are images.

    COCO's format: annotations with their images, or a list of detections as detectors write them, whose image_id is the
    image's name or the number in it.
    """
    tables = [_read_coco(path) for path in paths]
    if len(paths) == 1 and tables[0] is not None:
        image_boxes = [_from_coco(paths[0], tables[0], image, len(images)) for image in images]
        if isinstance(tables[0], list) and not any(len(boxes.boxes) for boxes in image_boxes):
            raise _no_detection(paths[0], images[0])
        return image_boxes
    if len(paths) != len(images):
        cure = "repeat --boxes once for each image, in their order, or give one file in COCO's format"
        raise InputError("--boxes", f"{len(paths)} files are given for {len(images)} images", cure)
    image_boxes = []
    for image, path, content in zip(images, paths, tables, strict=True):
        if content is None:
            boxes, names = read_boxes(path)
            image_boxes.append(Boxes(boxes, names or [], None, path))
        else:
            image_boxes.append(_from_coco(path, content, image, 1))
    return image_boxes


def _read_coco(path: str | os.PathLike) -> dict | list | None:
    """The content of a JSON file in COCO's format; None for any other file, which `read_boxes` reads or refuses."""
    try:
        content = json.loads(Path(path).read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    if isinstance(content, dict) and "annotations" in content:
        return coco_file.read_tables(Path(path))
    listed = isinstance(content, list) and content and all(isinstance(row, dict) for row in content)
    return content if listed and any("bbox" in row for row in content) else None


def _from_coco(path: str | os.PathLike, content: dict | list, image: Path, images: int) -> Boxes:
    path, annotated, classes = Path(path), None, {}
    rows = content if isinstance(content, list) else content["annotations"]
    for i, row in enumerate(rows):
        if "image_id" not in row:
            raise InputError(path, f"{coco_file.row_name(rows, i, 'annotation')} has no image_id", coco_file.CURE)
    if isinstance(content, dict):
        names = coco_file.texts(content["images"], "file_name", path, "image")
        own = [i for i, name in enumerate(names) if PurePosixPath(name.replace("\\", "/")).name == image.name]
        if len(own) != 1:
            trouble = f"lists {len(own)} images called {image.name}"
            raise InputError(path, trouble, "give the file that annotates this image, once")
        row = content["images"][own[0]]
        number = row.get("id")
        if row.get("width") is not None and row.get("height") is not None:
            annotated = tuple(int(coco_file.integers([row], key, path, "image")[0]) for key in ("width", "height"))
        titles = coco_file.texts(content["categories"], "name", path, "category")
        classes = dict(
            zip(coco_file.integers(content["categories"], "id", path, "category").tolist(), titles, strict=True)
        )
        rows = [row for row in rows if row["image_id"] == number]
    elif images > 1 or len({str(row["image_id"]) for row in rows}) > 1:
        rows = [row for row in rows if _names(row["image_id"], image)]
        if not rows and images == 1:
            raise _no_detection(path, image)
    boxes = torch.from_numpy(coco_file.corners(rows, path)).float()
    numbers = coco_file.integers(rows, "category_id", path, "annotation", default=-1).tolist()
    given = [classes.get(number, f"category {number}" if number >= 0 else "") for number in numbers]
    return Boxes(boxes.reshape(-1, 4), given, annotated, path)


def _no_detection(path: str | os.PathLike, image: Path) -> InputError:
    trouble = f"has no detection whose image_id is {image.stem}, or the number in it"
    return InputError(path, trouble, "name the images as the detector does")


def _names(image_id: object, image: Path) -> bool:
    """Whether a detection's image_id is the image's: its name, or the number at the end of its name."""
    number = re.search(r"\d+$", image.stem)
    return str(image_id) in (image.name, image.stem) or (number is not None and image_id == int(number[0]))


def read_boxes(path: str | os.PathLike) -> tuple[Tensor, list[str] | None]:
    """Boxes float32 [R, 4] as (x1, y1, x2, y2) in pixels, and their R names where the file gives them, else None.

    JSON: a list of [x1, y1, x2, y2], or of {"box": [...], "name": "..."} with all or none named. Otherwise text:
    four numbers a line, between commas or blanks; "#" starts a comment. An empty file holds no boxes. InputError
    where the file cannot be read or is not so; whether the boxes fit an image is for `check_boxes`.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(path, f"cannot be read ({error.strerror})", "check the path given to --boxes") from None
    except UnicodeDecodeError:
        raise InputError(path, "not a text file in UTF-8", _FORMAT) from None
    names = None
    if not text.strip():
        rows = []
    elif Path(path).suffix.lower() == ".json" or text.lstrip()[0] in "[{":
        rows, names = _read_json(path, text)
    else:
        rows = _read_lines(path, text)
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, 4), names


def _read_json(path: str | os.PathLike, text: str) -> tuple[list[list[float]], list[str] | None]:
    try:
        items = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(path, f"not valid JSON ({error})", _FORMAT) from None
    if not isinstance(items, list):
        raise InputError(path, f"holds a JSON {type(items).__name__}, not a list", _FORMAT)
    rows, names = [], []
    for i, item in enumerate(items):
        row = item.get("box") if isinstance(item, dict) else item
        if not isinstance(row, list) or len(row) != 4 or not all(type(value) in (int, float) for value in row):
            raise InputError(path, f"box {i} (the first is 0) is not four numbers: {json.dumps(item)[:80]}", _FORMAT)
        name = item.get("name") if isinstance(item, dict) else None
        if name is not None and not isinstance(name, str):
            raise InputError(path, f"box {i} (the first is 0) has a name that is not a string: {name!r}", _FORMAT)
        # A literal with hundreds of digits is an int too large for any float; 1e300 becomes float32's infinity.
        rows.append([float(max(min(value, 1e300), -1e300)) for value in row])
        names.append(name)
    if all(name is None for name in names):
        return rows, None
    if None in names:
        raise InputError(path, f"box {names.index(None)} (the first is 0) has no name", "name all boxes or none")
    return rows, names


def _read_lines(path: str | os.PathLike, text: str) -> list[list[float]]:
    rows = []
    for number, line in enumerate(text.splitlines(), start=1):
        line = line.split("#")[0].strip()
        if not line:
            continue
        try:
            row = [float(word) for word in (line.split(",") if "," in line else line.split())]
        except ValueError:
            row = []
        if len(row) != 4:
            raise InputError(path, f"line {number} is not four numbers: {line[:80]!r}", _FORMAT)
        rows.append(row)
    return rows


def check_boxes(boxes: Tensor, height: int, width: int, where: str | os.PathLike) -> Tensor:
    """`boxes` (float32 [R, 4], x1 y1 x2 y2 in pixels) clipped to an image of `height` x `width`.

    A side may lie up to one pixel outside, as tools that count pixels from 1 write it. InputError, naming `where`,
    the box and its values, for anything worse: numbers that are not finite, x2 <= x1, y2 <= y1, outside the image.
    """
    edge = torch.tensor([width, height] * 2, dtype=boxes.dtype, device=boxes.device)
    clipped = torch.minimum(boxes.clamp(min=0), edge)
    x1, y1, x2, y2 = boxes.unbind(1)
    inside = f"the image is {width} x {height} (width x height): keep 0 <= x <= {width} and 0 <= y <= {height}"
    order = "give each box as x1 y1 x2 y2 with x1 < x2 and y1 < y2, not as x y width height"
    checks = [
        (~boxes.isfinite().all(1), "is not finite", "give four finite numbers"),
        ((x2 <= x1) | (y2 <= y1), "has no width or no height", order),
        ((boxes < -1).any(1), "has a negative coordinate", inside),
        ((boxes > edge + 1).any(1), "reaches outside the image", inside),
        ((clipped[:, 2:] <= clipped[:, :2]).any(1), "lies wholly outside the image", inside),
    ]
    for bad, trouble, cure in checks:
        if bad.any():
            i = int(bad.nonzero()[0, 0])
            values = ", ".join(f"{value:g}" for value in boxes[i].tolist())
            raise InputError(where, f"box {i} (the first is 0), [{values}], {trouble}", cure)
    return clipped
