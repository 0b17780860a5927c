"""Boxes that a user gives for an image of their own: reading the file and refusing what cannot be a region."""

import json
import os
from pathlib import Path

import torch
from torch import Tensor

from irnet.errors import InputError

_FORMAT = "give a JSON list of [x1, y1, x2, y2] or of {'box': [...], 'name': ...}, or x1 y1 x2 y2 on each line"


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
