"""What the tests of the scenes share: a set read back from its files, and where its boxes are."""

import json
from math import hypot
from pathlib import Path

import numpy as np
from PIL import Image

from irnet.scenes import generator
from irnet.scenes.generator import bounds
from irnet.scenes.layout import LOOKALIKES, visible_region

STRIDE, FIELD = 16, 31
AMBIGUOUS = ("near", "far", "presence")
OTHER = {a: b for pair in LOOKALIKES for a, b in (pair, pair[::-1])}


def read(root: Path, split: str) -> list[dict]:
    """Per image: its pixels, and its objects as (name, kind, box) in the order of the annotations."""
    content = json.loads((root / "annotations" / f"instances_{split}.json").read_text())
    names = {c["id"]: c["name"] for c in content["categories"]}
    found = []
    for image in content["images"]:
        rows = [a for a in content["annotations"] if a["image_id"] == image["id"]]
        objects = []
        for a in rows:
            x, y, w, h = a["bbox"]
            objects.append((names[a["category_id"]], a["kind"], (x, y, x + w, y + h)))
        pixels = np.array(Image.open(root / "images" / split / image["file_name"]))
        assert pixels.shape == (image["height"], image["width"], 3) and pixels.dtype == np.uint8
        found.append({"pixels": pixels, "objects": objects})
    return found


def rebound(images: list[dict]) -> dict:
    labels = [[generator.NAMES.index(name) for name, _, _ in image["objects"]] for image in images]
    kinds = [[kind for _, kind, _ in image["objects"]] for image in images]
    boxes = [np.array([box for _, _, box in image["objects"]]) for image in images]
    return bounds([image["pixels"] for image in images], boxes, labels, kinds, STRIDE, FIELD)


def view(box: tuple, pixels: np.ndarray) -> tuple[int, ...]:
    return tuple(visible_region(np.array([box]), pixels.shape[:2], STRIDE, FIELD)[0].tolist())


def distance(a: tuple, b: tuple) -> float:
    return hypot(a[0] + a[2] - b[0] - b[2], a[1] + a[3] - b[1] - b[3]) / 2


def apart(a: tuple, b: tuple, space: float = 0) -> bool:
    return a[2] + space <= b[0] or b[2] + space <= a[0] or a[3] + space <= b[1] or b[3] + space <= a[1]
