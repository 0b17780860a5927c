"""The rules of the generated scenes in words, and which objects give the class of a region away. Draws nothing."""

import math
from collections.abc import Sequence

from .layout import LOOKALIKES, THEMES

_EGGS, _FLOWERS, _BALLS = LOOKALIKES
_PARTNERS = ("hen", "turtle")

# kind of region -> the rule that decides its class, in the order in which a page shows them
RULES = {
    "near": "All eggs look alike: an egg is a hen's where the nearest of all hens and turtles is a hen, and a turtle's "
    "where it is a turtle.",
    "far": "All flowers look alike: a flower is a morning flower where the sun stands far to its left, and an evening "
    "flower where the sun stands far to its right.",
    "presence": "All balls look alike: a ball is a beach ball where a parasol, a bucket or a starfish is anywhere in "
    "the picture, and a snow ball where a snowman, a sled or a mitten is.",
}


def clue(names: Sequence[str], boxes: Sequence[Sequence[float]], region: int) -> list[int]:
    """The objects of one scene that decide the class of its object `region`; none where its own looks do.

    names  class of every object in the scene
    boxes  (x1, y1, x2, y2) of every object, in pixels
    """
    if names[region] in _EGGS:
        partners = [i for i, name in enumerate(names) if name in _PARTNERS]
        return [min(partners, key=lambda i: _distance(boxes[i], boxes[region]))]
    if names[region] in _FLOWERS:
        return [i for i, name in enumerate(names) if name == "sun"]
    if names[region] in _BALLS:
        theme = THEMES[_BALLS.index(names[region])]
        return [i for i, name in enumerate(names) if name in theme]
    return []


def _distance(a: Sequence[float], b: Sequence[float]) -> float:
    """Between the centres of two boxes."""
    return math.hypot(a[0] + a[2] - b[0] - b[2], a[1] + a[3] - b[1] - b[3]) / 2
