"""Where everything in a scene goes: what a ConvNet sees of a box, the objects of a pair of twins, and their places.

Throws the coins and finds the room; writes no file, draws no background.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import product

import numpy as np
from numpy.random import Generator
from PIL import Image

from .art import background, sprite

LOOKALIKES = [("hen_egg", "turtle_egg"), ("morning_flower", "evening_flower"), ("beach_ball", "snow_ball")]
THEMES = (("parasol", "bucket", "starfish"), ("snowman", "sled", "mitten"))  # of beach_ball, of snow_ball
DISTRACTORS = ("tree", "house", "cat", "balloon")
KINDS = ("near", "far", "presence")

BORDER, SPACE, LEAST = 4, 2, 20  # pixels: to the image's edge, between two boxes, the shortest side of an object
HORIZON = 0.3
Box = tuple[int, int, int, int]


def _seen(
    start: np.ndarray, end: np.ndarray, length: int, stride: int, receptive_field: int
) -> tuple[np.ndarray, np.ndarray]:
    """`visible_region` along one axis."""
    half, last = (receptive_field - 1) // 2, -(-length // stride) - 1
    first_cell = np.clip(np.floor(np.divide(start, stride)), 0, last).astype(np.int64)
    last_cell = np.clip(np.ceil(np.divide(end, stride)), 0, last).astype(np.int64)
    return np.clip(stride * first_cell - half, 0, length), np.clip(stride * last_cell + half + 1, 0, length)


def visible_region(boxes: np.ndarray, size: tuple[int, int], stride: int, receptive_field: int) -> np.ndarray:
    """What a ConvNet sees of each box: int64 [R, 4], (x1, y1, x2, y2) in pixels, ends exclusive, clipped to the image.

    boxes [R, 4] are (x1, y1, x2, y2) in pixels, size is (H, W). Cell k of the feature map is centred at pixel
    `stride` * k and sees (receptive_field - 1) // 2 pixels to each side; a box reads the cells floor(y1 / stride) ..
    ceil(y2 / stride), as far as they exist, by bilinear interpolation.
    """
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    x1, x2 = _seen(boxes[:, 0], boxes[:, 2], size[1], stride, receptive_field)
    y1, y2 = _seen(boxes[:, 1], boxes[:, 3], size[0], stride, receptive_field)
    return np.stack([x1, y1, x2, y2], 1)


@dataclass
class Slot:
    """One object of a pair of twins: its kind, and per twin its class, picture and box (the same for shared objects).

    swapped is its coin: the first twin has the second class, or the second place, of the two.
    """

    kind: str
    classes: tuple[str, str]
    sprites: tuple[Image.Image, Image.Image]
    swapped: bool = False
    boxes: tuple[Box, Box] = ((0, 0, 0, 0), (0, 0, 0, 0))

    def place(self, box: Box, align_x: float = 0.5, align_y: float = 1.0) -> None:
        """Puts both pictures into one box that is large enough for either."""
        corners = []
        for image in self.sprites:
            x = box[0] + round((box[2] - box[0] - image.width) * align_x)
            y = box[1] + round((box[3] - box[1] - image.height) * align_y)
            corners.append((x, y, x + image.width, y + image.height))
        self.boxes = (corners[0], corners[1])

    @property
    def extent(self) -> tuple[int, int]:
        return max(s.width for s in self.sprites), max(s.height for s in self.sprites)


class NoRoom(Exception):
    """A try at a layout found no free place for an object."""


@dataclass
class Layout:
    """The boxes put down in one try: of all objects, of what differs between twins, and the views of ambiguous ones."""

    size: int
    stride: int
    receptive_field: int
    rng: Generator
    occupied: list[Box] = field(default_factory=list)
    changing: list[Box] = field(default_factory=list)
    views: list[Box] = field(default_factory=list)

    def put(
        self,
        extent: tuple[int, int],
        role: str,
        x: tuple[float, float] | None = None,
        y: tuple | None = None,
        away: Iterable[tuple[Box, int]] = (),
    ) -> Box:
        """A place chosen evenly among all that are free, with the upper left corner in the inclusive ranges x and y.

        role is "seen" (ambiguous: its view may show nothing that changes), "changing" (must stay out of every view) or
        "plain"; away are boxes to which it must keep a gap of so many pixels.
        """
        w, h = extent
        x, y = x or (0, self.size), y or (HORIZON * self.size - 0.5 * h, self.size)
        xs = np.arange(max(BORDER, np.ceil(x[0])), min(self.size - BORDER - w, np.floor(x[1])) + 1, dtype=np.int64)
        ys = np.arange(max(BORDER, np.ceil(y[0])), min(self.size - BORDER - h, np.floor(y[1])) + 1, dtype=np.int64)
        free = np.ones((len(ys), len(xs)), bool)
        boxes = xs, ys, xs + w, ys + h
        conflicts = [(boxes, SPACE, self.occupied), *((boxes, gap, [other]) for other, gap in away)]
        if role == "changing":
            conflicts.append((boxes, 0, self.views))
        if role == "seen":
            (left, right), (top, bottom) = (
                _seen(start, start + length, self.size, self.stride, self.receptive_field)
                for start, length in ((xs, w), (ys, h))
            )
            conflicts.append(((left, top, right, bottom), 0, self.changing))
        for (x1, y1, x2, y2), gap, obstacles in conflicts:
            for o in obstacles:
                rows, columns = (y1 < o[3] + gap) & (y2 + gap > o[1]), (x1 < o[2] + gap) & (x2 + gap > o[0])
                free &= ~(rows[:, None] & columns)
        corners = np.flatnonzero(free)
        if not len(corners):
            raise NoRoom
        row, column = divmod(int(corners[self.rng.integers(len(corners))]), len(xs))
        box = (int(xs[column]), int(ys[row]), int(xs[column]) + w, int(ys[row]) + h)
        self.occupied.append(box)
        if role == "changing":
            self.changing.append(box)
        if role == "seen":
            self.views.append(self.view(box))
        return box

    def view(self, box: Box) -> Box:
        region = visible_region(np.array(box), (self.size, self.size), self.stride, self.receptive_field)
        return tuple(region[0].tolist())


def near_margin(size: int) -> float:
    """By how many pixels (between centres) an egg's own partner is nearer than the other egg's, at least."""
    return size / 8


def far_distance(size: int) -> int:
    """The least horizontal distance between the centres of flower and sun, in pixels: 80 of 192."""
    return min(80 * size // 192, size // 2 - 16)


def distances(size: int, stride: int) -> dict[str, float]:
    """What scenes.json says of them, in pixels: near_gap is the most between the boxes of an egg and its partner."""
    return {"near_gap": 3 * stride, "near_margin": near_margin(size), "far_distance": far_distance(size)}


def _distance(a: Box, b: Box) -> float:
    return float(np.hypot(a[0] + a[2] - b[0] - b[2], a[1] + a[3] - b[1] - b[3])) / 2


@dataclass
class Painter:
    """Draws objects of a random size, given in pixels of a scene of 192 that is `scale` times as large."""

    scale: float
    rng: Generator

    def __call__(self, look: str, low: int, high: int, least: int = LEAST) -> Image.Image:
        low, high = max(least, round(low * self.scale)), max(least, round(high * self.scale))
        return sprite(look, int(self.rng.integers(low, high + 1)), least, self.rng)


def pair(kind: str, names: tuple[str, str], images: tuple[Image.Image, Image.Image], coin: bool) -> Slot:
    """One object of a pair of twins; the coin decides which of the two comes first."""
    return Slot(kind, names[::-1], images[::-1], True) if coin else Slot(kind, names, images)


def add_flower_and_sun(slots: dict[str, list[Slot]], draw: Painter) -> None:
    """Draws what is far from each other: a flower, and the sun, whose coin is its side."""
    coin, flower, sun = bool(draw.rng.integers(2)), draw("flower", 25, 29), draw("sun", 20, 23)
    slots["flower"].append(pair("far", LOOKALIKES[1], (flower, flower), coin))
    slots["sun"].append(pair("plain", ("sun", "sun"), (sun, sun), coin))


def make_slots(kinds: set[str], size: int, stride: int, rng: Generator) -> dict[str, list[Slot]]:
    """Draws the objects of a pair, by role, and throws the coins."""
    scale = size / 192
    draw = Painter(scale, rng)
    slots: dict[str, list[Slot]] = defaultdict(list)
    if "far" in kinds:
        add_flower_and_sun(slots, draw)
    if "near" in kinds:
        least = max(24, round(24 * scale), stride)  # so that a partner's box surely covers a cell of the map
        for _ in range(2):
            coin, egg = bool(rng.integers(2)), draw("egg", 22, 28)
            partners = (draw("hen", 26, 33, least), draw("turtle", 26, 34, least))
            slots["egg"].append(pair("near", LOOKALIKES[0], (egg, egg), coin))
            slots["partner"].append(pair("plain", ("hen", "turtle"), partners, coin))
    if "presence" in kinds:
        coin, ball, count = bool(rng.integers(2)), draw("ball", 22, 29), int(rng.integers(1, 3))
        slots["ball"].append(pair("presence", LOOKALIKES[2], (ball, ball), coin))
        beach, snow = (rng.choice(theme, count, replace=False).tolist() for theme in THEMES)
        for names in zip(beach, snow, strict=True):
            slots["theme"].append(pair("plain", names, tuple(draw(name, 26, 34) for name in names), coin))
    for name in rng.choice(DISTRACTORS, rng.integers(1, 4), replace=False).tolist():
        picture = draw(name, 27, 36)
        slots["distractor"].append(pair("plain", (name, name), (picture, picture), False))
    return slots


def canvas(size: int, rng: Generator) -> Image.Image:
    """What the objects stand on."""
    return background(size, HORIZON, rng)


def lay_out(slots: dict[str, list[Slot]], layout: Layout) -> None:
    """Gives every object its place, or raises NoRoom."""
    size = layout.size
    for flower, sun in zip(slots["flower"], slots["sun"], strict=True):
        (w, _), (sun_w, _), far = flower.extent, sun.extent, far_distance(size)
        reach = BORDER + sun_w / 2 + far
        box = layout.put(flower.extent, "seen", x=(reach - w / 2, size - reach - w / 2))
        flower.place(box)
        centre = (box[0] + box[2]) / 2
        sky = (BORDER, 0.06 * size)
        left = layout.put(sun.extent, "changing", x=(0, centre - far - sun_w / 2), y=sky)
        right = layout.put(sun.extent, "changing", x=(centre + far - sun_w / 2, size), y=sky)
        sun.boxes = (right, left) if sun.swapped else (left, right)
    for egg, partner in zip(slots["egg"], slots["partner"], strict=True):
        egg.place(layout.put(egg.extent, "seen"))
        _put_beside(egg.boxes[0], partner, layout)
    for (egg, own), (_, other) in product(zip(slots["egg"], slots["partner"], strict=True), repeat=2):
        if own is not other:
            nearest_other = min(_distance(egg.boxes[0], box) for box in other.boxes)
            if max(_distance(egg.boxes[0], box) for box in own.boxes) + near_margin(size) > nearest_other:
                raise NoRoom
    for ball in slots["ball"]:
        ball.place(layout.put(ball.extent, "seen"))
    for slot in slots["theme"]:
        slot.place(layout.put(slot.extent, "changing"))
    for slot in slots["distractor"]:
        in_the_air = slot.classes[0] == "balloon"
        slot.place(layout.put(slot.extent, "plain", y=(0, 0.5 * size) if in_the_air else None))


def _put_beside(egg: Box, partner: Slot, layout: Layout) -> None:
    """Puts the partner on one of the four sides of the egg, just outside the egg's view."""
    (w, h), view = partner.extent, layout.view(egg)
    along_x = (egg[0] - w / 2, egg[2] - w / 2)  # the partner's centre is level with some part of the egg
    along_y = (max(egg[1] - h / 2, HORIZON * layout.size - h / 2), egg[3] - h / 2)
    slack = [
        min(BORDER, 3 * layout.stride - g)
        for g in (egg[0] - view[0], egg[1] - view[1], view[2] - egg[2], view[3] - egg[3])
    ]
    sides = [
        ((view[0] - w - slack[0], view[0] - w), along_y, 1.0, 0.5),
        (along_x, (view[1] - h - slack[1], view[1] - h), 0.5, 1.0),
        ((view[2], view[2] + slack[2]), along_y, 0.0, 0.5),
        (along_x, (view[3], view[3] + slack[3]), 0.5, 0.0),
    ]
    for k in layout.rng.permutation(4):
        x, y, align_x, align_y = sides[k]
        if y[0] < HORIZON * layout.size - h / 2:
            continue
        try:
            partner.place(layout.put(partner.extent, "changing", x, y), align_x, align_y)
            return
        except NoRoom:
            continue
    raise NoRoom
