"""The tables of an annotation file in COCO's format, each value checked before it is used. Opens no image."""

import contextlib
import gc
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import attrgetter
from pathlib import Path

import msgspec
import numpy as np

from ..errors import InputError
from .table import Annotations, Images

CURE = "fetch the annotation file again, or correct the program that wrote it"
_FORMAT = "use an annotation file of COCO's instances format"
_INT64 = 2**63


@dataclass
class Columns:
    """The tables as columns, in the file's order.

    images           the images; LVIS's names come from coco_url
    ids              int64 [A], the ids of the annotations
    annotations      `image` holds image ids, `label` category ids; "iscrowd" is a reason to be left out
    category_ids     int64 [C], of `categories`
    classes          their names
    supercategories  as they stand in the file
    """

    images: Images
    ids: np.ndarray
    annotations: Annotations
    category_ids: np.ndarray
    classes: list[str]
    supercategories: list[object]


class _Image(msgspec.Struct, gc=False):
    id: int
    height: int
    width: int
    file_name: str | msgspec.UnsetType = msgspec.UNSET
    coco_url: str | msgspec.UnsetType = msgspec.UNSET


class _Annotation(msgspec.Struct, gc=False):
    id: int
    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]
    iscrowd: int = 0


def read_columns(path: Path, attribute_keys: Sequence[str] = ()) -> Columns:
    """The tables of the file in `path`. InputError, naming the row, for a value that cannot be used.

    attribute_keys  keys of annotations whose values are attributes where any annotation has them
    A file that is as the format says is decoded into these columns, whatever else it holds (polygons are most of it);
    any other is read row by row, which bears more (ids in quotes, null) and says what is wrong.
    """
    tables = None if attribute_keys else _decode(path)
    if tables is not None:
        with contextlib.suppress(OverflowError):  # an id beyond int64
            return _from_structs(tables, path)
    return _from_rows(read_tables(path), path, attribute_keys)


class _Tables(msgspec.Struct, gc=False):
    images: list[_Image]
    annotations: list[_Annotation]
    categories: list[dict]


def _decode(path: Path) -> _Tables | None:
    """The file's tables; None where it is not as the format says."""
    collects = gc.isenabled()
    gc.disable()  # a million boxes are no garbage, and looking whether they are takes longer than reading them
    try:
        tables = msgspec.json.decode(path.read_bytes(), type=_Tables)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    finally:
        if collects:
            gc.enable()
    return tables if tables.images and tables.categories else None


def _from_structs(tables: _Tables, path: Path) -> Columns:
    def column(rows: list, name: str) -> np.ndarray:
        return np.fromiter(map(attrgetter(name), rows), np.int64, len(rows))

    categories, rows = _categories(tables.categories, path), tables.annotations
    unset = msgspec.UNSET
    pairs = [(row.id, row.file_name, row.coco_url) for row in tables.images]
    named = [
        {"id": number, "file_name": _name(*(None if text is unset else text for text in (name, url)))}
        for number, name, url in pairs
    ]
    sizes = np.stack([column(tables.images, "height"), column(tables.images, "width")], axis=1)
    images = Images(column(tables.images, "id"), texts(named, "file_name", path, "image"), sizes)
    flat = chain.from_iterable(map(attrgetter("bbox"), rows))
    boxes = _as_corners(np.fromiter(flat, np.float64, 4 * len(rows)).reshape(-1, 4))
    crowd = {"iscrowd": column(rows, "iscrowd") != 0}
    given = Annotations(column(rows, "image_id"), column(rows, "category_id"), boxes, crowd)
    return Columns(images, column(rows, "id"), given, *categories)


def _from_rows(tables: dict[str, list[dict]], path: Path, attribute_keys: Sequence[str]) -> Columns:
    images, rows = tables["images"], tables["annotations"]
    categories = _categories(tables["categories"], path)
    image_ids = integers(images, "id", path, "image")
    sizes = np.stack([integers(images, key, path, "image") for key in ("height", "width")], axis=1)
    for row in images:
        if "file_name" not in row and isinstance(row.get("coco_url"), str):
            row["file_name"] = _name(None, row["coco_url"])
    names = texts(images, "file_name", path, "image")
    ids, image, category = (integers(rows, key, path, "annotation") for key in ("id", "image_id", "category_id"))
    crowd = integers(rows, "iscrowd", path, "annotation", default=0) != 0
    attributes = {
        key: [str(row.get(key, "")) for row in rows] for key in attribute_keys if any(key in row for row in rows)
    }
    given = Annotations(image, category, corners(rows, path), {"iscrowd": crowd}, attributes)
    return Columns(Images(image_ids, names, sizes), ids, given, *categories)


def _categories(rows: list[dict], path: Path) -> tuple[np.ndarray, list[str], list[object]]:
    groups = [row.get("supercategory") for row in rows]
    return integers(rows, "id", path, "category"), texts(rows, "name", path, "category"), groups


def _name(file_name: str | None, coco_url: str | None) -> str | None:
    """An image's name; LVIS names the folder and the file at the end of an address."""
    return file_name if file_name is not None or coco_url is None else "/".join(coco_url.split("/")[-2:])


def read_tables(path: Path) -> dict[str, list[dict]]:
    """The file's "images", "annotations" and "categories", each a list of dicts (the first and last not empty)."""
    try:
        # Bytes: json.loads knows UTF-8 with and without a mark, and UTF-16. It holds Python's lock while it reads, for
        # half a minute of a large set; a call of Python for each row lets other threads, and Ctrl-C, have their turn.
        tables = json.loads(path.read_bytes(), object_hook=lambda row: row)
    except OSError as error:
        raise InputError(path, f"cannot be read ({error.strerror})", "check the file's permissions") from None
    except (ValueError, RecursionError) as error:
        raise InputError(path, f"not valid JSON ({error})", "fetch the file again; it may be cut short") from None
    if not isinstance(tables, dict):
        raise InputError(path, f"holds a JSON {type(tables).__name__}, not COCO's tables", _FORMAT)
    for key in ("images", "annotations", "categories"):
        rows = tables.get(key)
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise InputError(path, f"has no list of {key}", _FORMAT)
        if not rows and key != "annotations":
            raise InputError(path, f"lists no {key}", _FORMAT)
    return tables


def integers(rows: list[dict], key: str, path: Path, what: str, default: int | None = None) -> np.ndarray:
    """int64 [len(rows)]: `key` of every row. Whole floats count, and as ids texts such as "7", which some tools write.

    InputError, naming the row, for anything else.

    default  what a row without `key` has; None: it is an InputError
    """
    values = [row.get(key, default) for row in rows]
    if set(map(type, values)) <= {int} and -_INT64 <= min(values, default=0) <= max(values, default=0) < _INT64:
        return np.array(values, np.int64)
    for i, value in enumerate(values):
        quoted = isinstance(value, str) and (key == "id" or key.endswith("_id"))
        if not (_is_quoted(value) if quoted else _is_whole(value)) or not -_INT64 <= int(value) < _INT64:
            name = row_name(rows, i, what)
            if key not in rows[i]:
                raise InputError(path, f"{name} has no {key}", CURE)
            raise InputError(path, f"{name} has {key} = {short(value)}, not an integer", CURE)
    return np.array([int(value) for value in values], np.int64)


def _is_quoted(text: str) -> bool:
    """Whether it is an integer as Python writes it: neither " 7" nor "07", which are other texts than "7"."""
    return len(text) <= 20 and text.removeprefix("-").isdecimal() and str(int(text)) == text


def _is_whole(value: object) -> bool:
    return type(value) is int or (type(value) is float and value.is_integer())


def row_name(rows: list[dict], i: int, what: str) -> str:
    """What a message calls row `i`: its id, else its position, from 0."""
    number = rows[i].get("id")
    return f"{what} {number}" if type(number) is int else f"{what} {i} (of {len(rows)})"


def short(value: object) -> str:
    """A value as a message shows it."""
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def unique(values: Iterable, path: Path, what: str, key: str) -> None:
    """InputError where two of `values` are equal."""
    if isinstance(values, np.ndarray):
        if (np.diff(values) > 0).all() or len(np.unique(values)) == len(values):
            return
        values = values.tolist()
    seen = set()
    for value in values:
        if value in seen:
            raise InputError(path, f"more than one {what} has the {key} {value!r}", f"give each {what} its own {key}")
        seen.add(value)


def texts(rows: list[dict], key: str, path: Path, what: str) -> list[str]:
    """`key` of every row, which must be a text that is not empty and can be written down."""
    for i, row in enumerate(rows):
        value, name = row.get(key), row_name(rows, i, what)
        if value is None:
            raise InputError(path, f"{name} has no {key}", CURE)
        if not isinstance(value, str):
            raise InputError(path, f"{name} has the {key} {short(value)}, not a text", f"write the {key} in quotes")
        if not value.strip() or "\0" in value or any("\ud800" <= letter <= "\udfff" for letter in value):
            raise InputError(path, f"{name} has the {key} {short(value)}, which nothing can be called", CURE)
    return [row[key] for row in rows]


def positions(known: np.ndarray, ids: np.ndarray, annotations: np.ndarray, what: str, path: Path) -> np.ndarray:
    """For each of `ids` its index in `known` (sorted); InputError, naming the annotation, where it has none."""
    lowest, span = known[0], int(known[-1]) - int(known[0]) + 1
    if span < 16 * len(known) + 1024:  # looked up at once, which searching for each would take longer than
        table = np.zeros(span, np.int64)
        table[known - lowest] = np.arange(len(known))
        index = table[(ids.clip(lowest, known[-1]) - lowest)]
    else:
        index = np.searchsorted(known, ids).clip(max=len(known) - 1)
    missing = np.flatnonzero(known[index] != ids)
    if len(missing):
        trouble = f"annotation {annotations[missing[0]]} refers to {what} {ids[missing[0]]}, which is not in the file"
        trouble += f" ({len(missing)} such annotations)"
        raise InputError(path, trouble, f"add the {what} or remove its annotations")
    return index


def corners(rows: list[dict], path: Path) -> np.ndarray:
    """float64 [A, 4]: COCO's [x, y, width, height] as (x1, y1, x2, y2); a null counts as NaN."""
    for i, row in enumerate(rows):
        box = row.get("bbox")
        if not isinstance(box, list) or len(box) != 4 or not all(_is_coordinate(value) for value in box):
            name = row_name(rows, i, "annotation")
            if box is None:
                raise InputError(path, f"{name} has no bbox", "draw its box, or remove the annotation")
            raise InputError(path, f"{name} has bbox = {short(box)}, not [x, y, width, height]", CURE)
    return _as_corners(np.array([row["bbox"] for row in rows], dtype=np.float64).reshape(len(rows), 4))


def _as_corners(boxes: np.ndarray) -> np.ndarray:
    """[x, y, width, height] made (x1, y1, x2, y2), in place."""
    with np.errstate(invalid="ignore", over="ignore"):
        boxes[:, 2:] += boxes[:, :2]
    return boxes


def _is_coordinate(value: object) -> bool:
    return type(value) is float or value is None or (type(value) is int and abs(value) < 2**1000)
