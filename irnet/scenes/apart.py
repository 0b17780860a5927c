"""Scenes that hold the paths apart: one path of the model carries what decides a kind of region, the others do not.

    near      an egg lies between a hen and a turtle, and is the one's whose centre is on its row; the other is on its
              column. Both are always there, at the same distance, on any side: edges between regions, which know sides
              and distances, tell no more than the classes that are present do. The memory is a map.
    far       as in layout.py, but nothing that a region shows tells where in the image it is: the paper is even, and no
              cell that it reads sees the padding. The sun is out of the memory's reach.
    presence  one thing lies in a crowd, not close to the ball, but other things do. Edges between regions average over
              all of them, close ones first; the exchange with classes keeps classes apart.

Objects, looks and twins are those of layout.py. Throws the coins and finds the room; writes no file.
"""

from collections import defaultdict
from collections.abc import Iterable

from numpy.random import Generator
from PIL import Image

from .art import paper
from .layout import DISTRACTORS, LEAST, LOOKALIKES, THEMES, Box, Layout, NoRoom, Painter, Slot, add_flower_and_sun, pair

Range = tuple[float, float]

CROWD = (4, 7)  # distractors anywhere, the least and one more than the most
AROUND = 3  # distractors around a ball
CLOSE, CLEAR = 24, 48  # pixels between boxes: what is around a ball at most, a flower and anything else at least


def far_distance(size: int) -> int:
    """The least horizontal distance between the centres of flower and sun, in pixels: 88 of 256."""
    return 88 * size // 256


def distances(size: int, stride: int) -> dict[str, float]:
    """What scenes.json says of them, in pixels: near_gap is the most between the boxes of an egg and a partner."""
    return {"near_gap": 3 * stride, "far_distance": far_distance(size)}


def make_slots(kinds: set[str], size: int, stride: int, rng: Generator) -> dict[str, list[Slot]]:
    """Draws the objects of a pair, by role, and throws the coins. Hen and turtle change places between the twins."""
    draw = Painter(1.0, rng)
    slots: dict[str, list[Slot]] = defaultdict(list)
    if "far" in kinds:
        add_flower_and_sun(slots, draw)
    if "near" in kinds:
        coin, egg = bool(rng.integers(2)), _even(draw, "egg", 22, 28)
        hen, turtle = _even(draw, "hen", 26, 33, 24), _even(draw, "turtle", 26, 34, 24)
        slots["egg"].append(pair("near", LOOKALIKES[0], (egg, egg), coin))
        slots["row"].append(pair("plain", ("hen", "turtle"), (hen, turtle), coin))
        slots["column"].append(pair("plain", ("turtle", "hen"), (turtle, hen), coin))
    if "presence" in kinds:
        coin, ball = bool(rng.integers(2)), draw("ball", 22, 29)
        slots["ball"].append(pair("presence", LOOKALIKES[2], (ball, ball), coin))
        names = tuple(str(rng.choice(theme)) for theme in THEMES)
        slots["theme"].append(pair("plain", names, tuple(draw(name, 26, 34) for name in names), coin))
    counts = {"around": AROUND if "presence" in kinds else 0, "distractor": int(rng.integers(*CROWD))}
    for role, count in counts.items():
        for name in rng.choice(DISTRACTORS, count).tolist():
            picture = draw(name, 24, 32)
            slots[role].append(pair("plain", (name, name), (picture, picture), False))
    return slots


def _even(draw: Painter, look: str, low: int, high: int, least: int = LEAST) -> Image.Image:
    """A picture of even sides: its centre falls between two pixels, as those of all such pictures do."""
    while True:
        image = draw(look, low, high, least)
        if image.width % 2 == 0 == image.height % 2:
            return image


def canvas(size: int, rng: Generator) -> Image.Image:
    """What the objects lie on: it tells nobody where."""
    return paper(size, rng)


def lay_out(slots: dict[str, list[Slot]], layout: Layout) -> None:
    """Gives every object its place, or raises NoRoom."""
    size, stride = layout.size, layout.stride
    # Between these no cell that a box reads sees the padding: nothing looks as if it were on one side of the image.
    half = (layout.receptive_field - 1) // 2
    inner = -(-half // stride) * stride, (size - 1 - half) // stride * stride

    def put(slot: Slot, role: str, x: Range = (0, size), y: Range = (0, size), away: Iterable[Box] = ()) -> Box:
        (w, h), (low, high) = slot.extent, inner
        x, y = (max(x[0], low), min(x[1], high - w)), (max(y[0], low), min(y[1], high - h))
        return layout.put(slot.extent, role, x, y, [(box, CLEAR) for box in away])

    flowers: list[Box] = []
    for flower, sun in zip(slots["flower"], slots["sun"], strict=True):
        (w, _), (sun_w, _), far = flower.extent, sun.extent, far_distance(size)
        reach = inner[0] + sun_w / 2 + far
        flower_box = put(flower, "seen", x=(reach - w / 2, size - reach - w / 2))
        flower.place(flower_box)
        centre = (flower_box[0] + flower_box[2]) / 2
        left = put(sun, "changing", x=(0, centre - far - sun_w / 2))
        right = put(sun, "changing", x=(centre + far - sun_w / 2, size))
        sun.boxes = (right, left) if sun.swapped else (left, right)
        flowers.append(flower_box)
    for egg, row, column in zip(slots["egg"], slots["row"], slots["column"], strict=True):
        egg.place(put(egg, "seen", away=flowers))
        for slot, (x, y, *_) in zip((row, column), _partners(egg.boxes[0], row.extent, layout), strict=True):
            slot.place(put(slot, "changing", (x, x), (y, y), flowers), 0.5, 0.5)
    for ball, theme in zip(slots["ball"], slots["theme"], strict=True):
        ball_box = put(ball, "seen", away=flowers)
        ball.place(ball_box)
        theme.place(put(theme, "changing", away=[ball_box, *flowers]))
        for slot in slots["around"]:
            w, h = slot.extent
            x = ball_box[0] - w - CLOSE, ball_box[2] + CLOSE
            y = ball_box[1] - h - CLOSE, ball_box[3] + CLOSE
            slot.place(put(slot, "plain", x, y, flowers))
    for slot in slots["distractor"]:
        slot.place(put(slot, "plain", away=flowers))


def _partners(egg: Box, extent: tuple[int, int], layout: Layout) -> tuple[Box, Box]:
    """Boxes on the egg's row and on its column, their centres equally far from the egg's.

    Both are a little off, to either side: by what is left, right, above and below, and by distances, nobody can tell
    which is which. Neither is in the egg's view, nor the egg in theirs.
    """
    x, y, (w, h) = (egg[0] + egg[2]) // 2, (egg[1] + egg[3]) // 2, extent
    off = int(layout.rng.integers(1, layout.stride // 2 + 1))
    side, over, under, end = layout.rng.choice((-1, 1), 4).tolist()
    first = min(w + egg[2] - egg[0], h + egg[3] - egg[1]) // 2  # the distance of two boxes without a gap
    possible = []
    for distance in range(first, first + 3 * layout.stride):
        centres = (x + side * distance, y + over * off), (x + under * off, y + end * distance)
        row, column = ((cx - w // 2, cy - h // 2, cx - w // 2 + w, cy - h // 2 + h) for cx, cy in centres)
        if all(_clear(layout.view(egg), box) and _clear(layout.view(box), egg) for box in (row, column)):
            possible.append((row, column))
    # Of a whole stride: the place of a partner within a cell of the map, which its features show, then tells nothing.
    if len(possible) < layout.stride:
        raise NoRoom
    return possible[layout.rng.integers(layout.stride)]


def _clear(a: Box, b: Box) -> bool:
    """Whether two boxes have no pixel in common."""
    return a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
