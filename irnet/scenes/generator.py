"""The generator of synthetic scenes, where context decides some classes: rules, files, bounds. No drawing, no layout.

Scenes come in pairs. The twins of a pair are the same picture bit for bit but for the context objects, all of which lie
outside what a ConvNet sees of any ambiguous box; every ambiguous object has the other class in the other twin. So
whatever looks at such a box alone is right on one of the two at most, and `bounds` counts from the written pixels how
far it can get at all.

    near      an egg (hen_egg, turtle_egg): whether a hen or a turtle is the nearest of the two. Two eggs with coins of
              their own share a scene, so that presence does not tell.
    far       a flower (morning_flower, evening_flower): whether the sun stands far to the left or far to the right.
    presence  a ball (beach_ball, snow_ball): whether beach things or snow things are anywhere in the picture.
    plain     everything else: its looks tell.

In these several paths of a model carry the same clue. apart.py has scenes with other rules, in which they do not.
"""

import dataclasses
import json
import os
import shutil
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from math import fsum
from pathlib import Path
from types import ModuleType

import numpy as np
from PIL import Image

from .. import files
from ..errors import InputError
from ..progress import Progress
from . import apart, layout
from .layout import (
    KINDS,
    LOOKALIKES,
    THEMES,
    Layout,
    NoRoom,
    Slot,
    visible_region,
)

VERSION = 1  # of what is drawn: one more whenever the same parameters give other files

# name, supercategory
CLASSES = [
    ("hen_egg", "egg"), ("turtle_egg", "egg"), ("morning_flower", "flower"), ("evening_flower", "flower"),
    ("beach_ball", "ball"), ("snow_ball", "ball"), ("hen", "animal"), ("turtle", "animal"), ("sun", "sky"),
    ("parasol", "beach"), ("bucket", "beach"), ("starfish", "beach"), ("snowman", "snow"), ("sled", "snow"),
    ("mitten", "snow"), ("tree", "scenery"), ("house", "scenery"), ("cat", "animal"), ("balloon", "sky"),
]  # fmt: skip
NAMES = [name for name, _ in CLASSES]


@dataclass(frozen=True)
class World:
    """How scenes are made.

    size             pixels of their height and width
    stride           pixels, of the ConvNet from which the ambiguous classes are hidden
    receptive_field  pixels, of the same
    apart            whether they hold the paths apart, as apart.py has it; else as layout.py has it
    """

    size: int = 192
    stride: int = 16
    receptive_field: int = 31
    apart: bool = False

    @property
    def rules(self) -> ModuleType:
        return apart if self.apart else layout

    def facts(self) -> dict:
        """What scenes.json says of it."""
        facts = dataclasses.asdict(self)
        return facts if self.apart else {key: value for key, value in facts.items() if key != "apart"}


def bounds(
    images: Iterable[np.ndarray],
    boxes: Sequence[np.ndarray],
    labels: Sequence[Sequence[int]],
    kinds: Sequence[Sequence[str]],
    stride: int,
    receptive_field: int,
) -> dict:
    """The best scores, on exactly these images, of a classifier that sees of a box its place and visible region only.

    images  uint8 [H, W, 3] each; boxes [R, 4] per image, (x1, y1, x2, y2) in pixels; labels and kinds: R per image.

    Boxes that no such classifier can tell apart form a group: the same box, region and pixels in an image of the same
    size. Gives "instance_accuracy", "class_accuracy" (mean over the classes that occur), "class_ap" (the same mean; a
    group is ranked as one, by its share of the class, precision taken at its end: the best where all shares of a class
    are equal or whole, as twins make them) and "by_kind", the accuracy among the boxes of each kind.
    Raises ValueError if there is no box at all.
    """
    groups: dict[bytes, Counter] = defaultdict(Counter)
    group_kinds: dict[str, dict[bytes, Counter]] = defaultdict(lambda: defaultdict(Counter))
    for image, image_boxes, image_labels, image_kinds in zip(images, boxes, labels, kinds, strict=True):
        regions = visible_region(image_boxes, image.shape[:2], stride, receptive_field)
        coordinates = np.asarray(image_boxes, np.float64).reshape(-1, 4)
        for box, region, label, kind in zip(coordinates, regions, image_labels, image_kinds, strict=True):
            x1, y1, x2, y2 = region
            digest = blake2b(np.array([*image.shape, *region]).tobytes() + box.tobytes(), digest_size=16)
            digest.update(np.ascontiguousarray(image[y1:y2, x1:x2]).tobytes())
            groups[digest.digest()][label] += 1
            group_kinds[kind][digest.digest()][label] += 1
    totals: Counter = sum(groups.values(), Counter())
    if not totals:
        raise ValueError("no boxes: there is nothing to bound")
    precisions = {}
    for label, total in totals.items():
        hits = seen = precision = 0.0
        # Of two groups with equal shares the smaller one first: that order gives more.
        for members in sorted(
            (g for g in groups.values() if g[label]), key=lambda g: (-g[label] / g.total(), g.total())
        ):
            hits, seen = hits + members[label], seen + members.total()
            precision += members[label] * hits / seen
        precisions[label] = precision / total
    return {
        "instance_accuracy": _best(groups) / totals.total(),
        "class_accuracy": fsum(max(n / totals[c] for c, n in g.items()) for g in groups.values()) / len(totals),
        "class_ap": fsum(precisions.values()) / len(totals),
        "by_kind": {kind: _best(g) / sum(g.values(), Counter()).total() for kind, g in sorted(group_kinds.items())},
    }


def _best(groups: dict[bytes, Counter]) -> int:
    return sum(max(members.values()) for members in groups.values())


def _make_pair(world: World, seeds: list[int]) -> tuple[list[Image.Image], list[Slot]]:
    """The pictures of two twins and their objects, in the order of the annotations."""
    size = world.size
    rng = np.random.default_rng(seeds)
    kinds: set[str] = set()
    while not kinds:
        kinds = {kind for kind in KINDS if rng.random() < 0.66}
    for attempt in range(1000):
        if attempt % 200 == 0:
            slots = world.rules.make_slots(kinds, size, world.stride, rng)
        try:
            world.rules.lay_out(slots, Layout(size, world.stride, world.receptive_field, rng))
            break
        except NoRoom:
            continue
    else:
        trouble = f"{size} pixels have no room for all objects outside a receptive field of {world.receptive_field}"
        raise InputError("size", trouble, "give a larger size, or a smaller receptive field or stride")
    objects = [slot for members in slots.values() for slot in members]
    objects = [objects[k] for k in rng.permutation(len(objects))]
    canvas = world.rules.canvas(size, rng).convert("RGBA")
    pictures = []
    for twin in range(2):
        picture = canvas.copy()
        for slot in objects:
            picture.alpha_composite(slot.sprites[twin], slot.boxes[twin][:2])
        pictures.append(picture.convert("RGB"))
    return pictures, objects


def class_graph() -> dict:
    """What the scenes' classes have to do with each other: {"classes": names, "relations": [{"name", "edges"}]}.

    An edge is [src, dst, weight] by class index; dst receives from src. All relations are symmetric.
    """
    together = [("hen", "hen_egg"), ("turtle", "turtle_egg"), ("sun", "morning_flower"), ("sun", "evening_flower")]
    for ball, theme in zip(LOOKALIKES[2], THEMES, strict=True):
        members = (ball, *theme)
        together += [(a, b) for k, a in enumerate(members) for b in members[k + 1 :]]
    kinds = [(a, b) for k, (a, kind) in enumerate(CLASSES) for b, other in CLASSES[k + 1 :] if kind == other]
    relations = []
    for name, pairs in (("belongs_together", together), ("looks_like", LOOKALIKES), ("same_kind", kinds)):
        edges = sorted([NAMES.index(a), NAMES.index(b), 1.0] for pair in pairs for a, b in (pair, pair[::-1]))
        relations.append({"name": name, "edges": edges})
    return {"classes": NAMES, "relations": relations}


def _write_split(root: Path, split: str, pairs: int, world: World, seeds: list[int], progress: Progress) -> dict:
    """Writes the images and annotations of one split and gives its facts, bounds included, read back from the files."""
    folder = root / "images" / split
    folder.mkdir(parents=True)
    images, annotations = [], []
    for pair in range(pairs):
        pictures, objects = _make_pair(world, [*seeds, pair])
        for twin, picture in enumerate(pictures):
            number = 2 * pair + twin + 1
            images.append({"id": number, "file_name": f"{number:06d}.png", "width": world.size, "height": world.size})
            picture.save(folder / images[-1]["file_name"], compress_level=1)
            for slot in objects:
                x1, y1, x2, y2 = (float(v) for v in slot.boxes[twin])
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": number,
                        "category_id": NAMES.index(slot.classes[twin]) + 1,
                        "bbox": [x1, y1, x2 - x1, y2 - y1],
                        "area": (x2 - x1) * (y2 - y1),
                        "iscrowd": 0,
                        "segmentation": [[x1, y1, x2, y1, x2, y2, x1, y2]],
                        "kind": slot.kind,
                    }
                )
            progress.update()
    categories = [{"id": k + 1, "name": name, "supercategory": kind} for k, (name, kind) in enumerate(CLASSES)]
    content = {"info": {"description": f"irnet scenes, {split}"}, "licenses": [], "images": images}
    _write_json(
        root / "annotations" / f"instances_{split}.json",
        content | {"annotations": annotations, "categories": categories},
    )
    by_image: list[list[dict]] = [[] for _ in images]
    for a in annotations:
        by_image[a["image_id"] - 1].append(a)
    corners = [np.array([[x, y, x + w, y + h] for x, y, w, h in (a["bbox"] for a in rows)]) for rows in by_image]
    labels = [[a["category_id"] - 1 for a in rows] for rows in by_image]
    kinds = [[a["kind"] for a in rows] for rows in by_image]
    pixels = (np.asarray(Image.open(folder / image["file_name"])) for image in images)
    counts = Counter(NAMES[k] for row in labels for k in row)
    return {
        "images": len(images),
        "objects": len(annotations),
        "kinds": dict(sorted(Counter(k for row in kinds for k in row).items())),
        "classes": {name: counts[name] for name in NAMES},
        "bounds": bounds(pixels, corners, labels, kinds, world.stride, world.receptive_field),
    }


def _write_json(path: Path, content: dict) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=None if len(content.get("annotations", ())) else 1) + "\n")


def _check(train: int, val: int, seed: int, world: World) -> None:
    stride, receptive_field = world.stride, world.receptive_field
    for name, count in (("train", train), ("val", val)):
        if count < 2 or count % 2:
            raise InputError(name, f"{count} images: scenes come in pairs of twins", "give an even number from 2 up")
    for name, value, low, high in (
        ("size", world.size, 256 if world.apart else 160, 1024),
        ("seed", seed, 0, 2**32 - 1),
        ("stride", stride, 4, 32),
    ):
        if not low <= value <= high:
            raise InputError(name, f"{value} is out of range", f"give {low} to {high}")
    if not 1 <= receptive_field <= 4 * stride + 1:
        # Beyond this, what lies outside a view is out of reach of three 3x3 convolutions.
        raise InputError(
            "receptive_field", f"{receptive_field} is out of range", f"give 1 to {4 * stride + 1} at stride {stride}"
        )


def _earlier(out: Path, parameters: dict) -> dict | None:
    """The facts of a result that is already in `out`, None where there is nothing; refuses anything else."""
    if not out.exists():
        return None
    if not out.is_dir():
        raise InputError(out, "is a file", "name a folder for the data set")
    if not any(out.iterdir()):
        return None
    try:
        facts = json.loads((out / "scenes.json").read_text())
        said = {"apart": False} | facts  # scenes.json does not say it of the scenes of the demonstration
        same = {key: said[key] for key in parameters if key not in ("train", "val")}
        same |= {split: {"images": facts[split]["images"]} for split in ("train", "val")}
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(out, "is not empty and holds no scenes", "name a new or an empty folder") from None
    if same != parameters:
        raise InputError(out, "holds scenes made with other parameters", "name another folder, or delete this one")
    return facts


def generate(
    out: Path,
    train: int = 1500,
    val: int = 300,
    seed: int = 0,
    world: World = World(),
    progress: bool = True,
) -> dict:
    """Writes a data set of scenes in COCO's layout to the folder `out` and returns its facts, as in scenes.json.

    train and val are numbers of images (even, a pair of twins is two). The same parameters give the same bytes.
    Everything is written beside `out` and moved there in one step at the end. A folder that holds the same result
    already is left as it is; any other that is not empty, and parameters out of range, raise InputError.
    """
    out = Path(out)
    _check(train, val, seed, world)
    facts = {"version": VERSION, "seed": seed, **world.facts()}
    earlier = _earlier(out, facts | {"apart": world.apart, "train": {"images": train}, "val": {"images": val}})
    if earlier is not None:
        if progress:
            print(f"{out}: these scenes are here already, nothing to do", file=sys.stderr)
        return earlier
    facts |= world.rules.distances(world.size, world.stride)
    target = out.resolve()
    partial = target.parent / f".{target.name}.partial-{os.getpid()}"
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise InputError(
            out, f"cannot be written ({error.strerror})", "name a folder in a place you may write to"
        ) from None
    try:
        with (
            files.writing(out),
            Progress("scenes", train + val, "image", leave=True, hidden=not progress) as shown,
        ):
            for k, (split, count) in enumerate((("train", train), ("val", val))):
                facts[split] = _write_split(partial, split, count // 2, world, [seed, k], shown)
        _write_json(partial / "class_graph.json", class_graph())
        _write_json(partial / "scenes.json", facts)
        partial.replace(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return facts
