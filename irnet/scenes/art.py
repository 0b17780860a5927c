"""How the generated scenes look: one small painter per object, and the background. Knows nothing of classes and rules.

Painters work in a square of 100 x 100 units, y downwards, on a canvas that is several times too large; `sprite`
shrinks the result and cuts it to the tight rectangle of its visible pixels, so that a sprite is its box.
"""

from collections.abc import Callable

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw, ImageFilter

Colour = tuple[int, int, int]
Points = list[tuple[float, float]]

SUPERSAMPLE = 4
INK = (74, 58, 62)
WHITE = (255, 253, 246)

_T = np.arange(6)[:, None] / 6
CATMULL_ROM = np.concatenate([_T**3, _T**2, _T, _T**0], 1) @ np.array(
    [[-0.5, 1.5, -1.5, 0.5], [1, -2.5, 2, -0.5], [-0.5, 0, 0.5, 0], [0, 1, 0, 0]]
)  # the weights of four knots at six steps from the second to the third


class Pen:
    """Draws outlined shapes, in units of a hundredth of the canvas."""

    def __init__(self, side: int, rng: Generator):
        self.image = Image.new("RGBA", (side, side))
        self.draw = ImageDraw.Draw(self.image)
        self.unit, self.rng = side / 100, rng

    def tint(self, colour: Colour, amount: int = 12) -> Colour:
        """A colour a little off the given one, brightness and hue alike."""
        bright, *hue = self.rng.integers(-amount, amount + 1, 4).tolist()
        return tuple(min(max(c + bright + h, 0), 255) for c, h in zip(colour, hue, strict=True))

    def blob(
        self, x: float, y: float, rx: float, ry: float, fill: tuple, line: Colour | None = INK, width: float = 3.5
    ):
        corners = [v * self.unit for v in (x - rx, y - ry, x + rx, y + ry)]
        self.draw.ellipse(corners, fill, line, round(width * self.unit) if line else 0)

    def poly(self, points: Points, fill: tuple, line: Colour | None = INK, width: float = 3.5):
        corners = [(x * self.unit, y * self.unit) for x, y in points]
        self.draw.polygon(corners, fill)
        if line:
            self.draw.line([*corners, corners[0], corners[1]], line, round(width * self.unit), "curve")

    def smooth(self, points: Points, fill: tuple, line: Colour | None = INK, width: float = 3.5):
        """A closed Catmull-Rom curve through the points."""
        p = np.array([points[-1], *points, *points[:2]], np.float64)
        knots = np.stack([p[:-3], p[1:-2], p[2:-1], p[3:]])  # the four that shape each piece
        curve = np.tensordot(CATMULL_ROM, knots, 1).swapaxes(0, 1).reshape(-1, 2)
        self.poly(curve.tolist(), fill, line, width)

    def stroke(self, points: Points, colour: tuple, width: float):
        self.draw.line([(x * self.unit, y * self.unit) for x, y in points], colour, round(width * self.unit), "curve")

    def shadow(self, x: float, y: float, rx: float, ry: float):
        self.blob(x, y, rx, ry, (50, 60, 60, 70), None)

    def eye(self, x: float, y: float, r: float = 4.5):
        self.blob(x, y, r, r * 1.15, (40, 32, 40), None)
        self.blob(x + r * 0.35, y - r * 0.4, r * 0.4, r * 0.4, WHITE, None)


def ring(x: float, y: float, radius: float, count: int, start: float = 0.0) -> Points:
    """`count` points on a circle, clockwise on the screen from the angle `start` (radians)."""
    return [(x + radius * np.cos(a), y + radius * np.sin(a)) for a in start + np.arange(count) * 2 * np.pi / count]


def egg(p: Pen) -> None:
    p.shadow(50, 90, 46, 9)
    straw = p.tint((214, 166, 92))
    p.smooth([(6, 68), (50, 60), (94, 68), (84, 90), (50, 95), (16, 90)], straw)
    shell = p.tint((250, 232, 205), 8)
    p.smooth([(50, 5), (72, 22), (81, 52), (70, 77), (50, 83), (30, 77), (19, 52), (28, 22)], shell)
    for x, y, r in ((40, 34, 5), (62, 45, 6), (42, 60, 4.5), (57, 24, 4)):
        p.blob(x, y, r, r, (214, 168, 150), None)
    p.smooth([(8, 72), (30, 77), (50, 74), (70, 78), (92, 72), (83, 91), (50, 96), (17, 91)], straw)
    for x in (20, 36, 52, 68):
        p.stroke([(x, 80), (x + 12, 90)], (158, 112, 58), 3)


def flower(p: Pen) -> None:
    p.shadow(50, 94, 26, 5)
    leaf, petal = p.tint((92, 160, 84)), p.tint((238, 118, 168), 10)
    p.stroke([(50, 50), (50, 95)], INK, 12)
    p.stroke([(50, 50), (50, 94)], leaf, 6)
    for side in (-1, 1):
        p.smooth([(50, 92), (50 + 18 * side, 68), (50 + 44 * side, 62), (50 + 30 * side, 88)], leaf)
    for x, y in ring(50, 34, 20, 7, float(p.rng.uniform(0, 1))):
        p.blob(x, y, 14, 14, petal)
    for x, y in ring(50, 34, 14, 7):
        p.blob(x, y, 9, 9, petal, None)
    p.blob(50, 34, 13, 13, (252, 206, 84))
    p.eye(45, 33, 2.6)
    p.eye(55, 33, 2.6)


def ball(p: Pen) -> None:
    p.blob(50, 50, 46, 46, WHITE)
    start = float(p.rng.uniform(0, 360))
    for k, colour in enumerate(((226, 82, 82), (70, 140, 214), (248, 196, 70))):
        corners = [v * p.unit for v in (6, 6, 94, 94)]
        p.draw.pieslice(corners, start + 120 * k, start + 120 * k + 60, p.tint(colour, 8), INK, round(2 * p.unit))
    p.draw.ellipse([v * p.unit for v in (4, 4, 96, 96)], None, INK, round(4.5 * p.unit))
    p.blob(50, 50, 10, 10, WHITE, INK, 3)


def hen(p: Pen) -> None:
    p.shadow(50, 94, 34, 5)
    body, red, gold = p.tint((196, 108, 56)), (214, 52, 52), (246, 178, 58)
    for x in (43, 57):
        p.stroke([(x, 78), (x, 95), (x + 8, 95)], gold, 5)
    for x, y in ((66, 12), (74, 8), (83, 13)):
        p.blob(x, y, 7, 8, red, INK, 3)
    p.smooth([(4, 26), (20, 38), (38, 46), (58, 40), (62, 20), (76, 11), (88, 22), (88, 44), (84, 66), (66, 84),
              (36, 84), (14, 68)], body)  # fmt: skip
    p.smooth([(28, 54), (46, 50), (62, 58), (50, 72), (34, 70)], p.tint((236, 170, 104)))
    p.poly([(86, 25), (99, 32), (86, 38)], gold, INK, 3)
    p.blob(87, 44, 5, 7, red, INK, 2.5)
    p.eye(77, 25, 4.5)


def turtle(p: Pen) -> None:
    p.shadow(48, 90, 44, 7)
    skin, shell = p.tint((158, 204, 104)), p.tint((44, 140, 106))
    for x in (22, 60):
        p.smooth([(x - 9, 70), (x + 10, 70), (x + 11, 91), (x - 10, 91)], skin)
    p.smooth([(66, 58), (74, 34), (86, 26), (98, 36), (95, 52), (82, 60), (76, 76)], skin)
    p.poly([(2, 72), (14, 66), (16, 80)], skin)
    p.smooth([(6, 74), (12, 40), (40, 16), (68, 36), (78, 74), (42, 82)], shell)
    for x, y, r in ((40, 34, 9), (25, 54, 8), (56, 54, 8), (40, 66, 7)):
        p.blob(x, y, r, r, (124, 200, 140), (30, 96, 78), 2.5)
    p.eye(87, 38, 4.5)


def sun(p: Pen) -> None:
    glow = p.tint((255, 176, 40), 8)
    start = float(p.rng.uniform(0, 1))
    star = zip(ring(50, 50, 49, 10, start), ring(50, 50, 33, 10, start + np.pi / 10), strict=True)
    p.poly([q for both in star for q in both], glow, (214, 120, 30), 3)
    p.blob(50, 50, 31, 31, (255, 224, 92), (226, 140, 36), 3)
    for x in (40, 60):
        p.eye(x, 46, 4)
    p.draw.arc([v * p.unit for v in (38, 44, 62, 66)], 20, 160, (190, 92, 40), round(4 * p.unit))


def parasol(p: Pen) -> None:
    p.shadow(50, 94, 24, 5)
    red = p.tint((224, 70, 84), 8)
    p.stroke([(50, 4), (50, 95)], INK, 8)
    p.stroke([(50, 4), (50, 94)], (236, 206, 160), 4)
    dome = [(50 + 47 * np.cos(a), 56 - 46 * np.sin(a)) for a in np.linspace(0, np.pi, 13)]
    for k in range(6):
        p.poly([*dome[2 * k : 2 * k + 3], (50, 56) if k in (2, 3) else (50, 30)], red if k % 2 else WHITE, None)
    cloth = [(97, 56), (81, 52), (66, 58), (50, 53), (34, 58), (19, 52), (3, 56)]
    for k in range(6):
        p.poly([cloth[k], cloth[k + 1], (50, 12)], WHITE if k % 2 else red, None)
    for k in (1, 2, 3, 4, 5):
        p.stroke([cloth[k], (50, 12)], INK, 1.5)
    p.stroke([*dome, *cloth[::-1], dome[0]], INK, 3.5)


def bucket(p: Pen) -> None:
    p.shadow(50, 92, 34, 7)
    tin = p.tint((52, 116, 216), 10)
    p.draw.arc([v * p.unit for v in (18, 3, 82, 80)], 180, 360, INK, round(9 * p.unit))
    p.draw.arc([v * p.unit for v in (20, 5, 80, 80)], 180, 360, (250, 208, 70), round(4.5 * p.unit))
    p.poly([(8, 40), (92, 40), (78, 92), (22, 92)], tin)
    p.poly([(14, 56), (86, 56), (83, 68), (17, 68)], (250, 208, 70), None)
    p.blob(50, 40, 44, 9, (242, 216, 156))
    p.smooth([(22, 40), (38, 27), (54, 32), (66, 26), (78, 40)], (242, 216, 156), None)


def starfish(p: Pen) -> None:
    skin = p.tint((255, 126, 82), 8)
    star = zip(ring(50, 50, 47, 5, -np.pi / 2), ring(50, 50, 22, 5, -np.pi / 2 + np.pi / 5), strict=True)
    p.smooth([q for both in star for q in both], skin, (160, 62, 48), 4.5)
    for x, y in [*ring(50, 50, 28, 5, -np.pi / 2), *ring(50, 50, 15, 5, -np.pi / 2)]:
        p.blob(x, y, 3.5, 3.5, (255, 206, 160), None)
    p.eye(44, 48, 3.5)
    p.eye(56, 48, 3.5)


def snowman(p: Pen) -> None:
    p.shadow(50, 94, 38, 5)
    snow, scarf = (244, 249, 255), p.tint((60, 104, 200), 10)
    for side in (-1, 1):
        p.stroke([(50 + 20 * side, 62), (50 + 46 * side, 44)], (110, 76, 54), 5)
    p.blob(50, 71, 31, 25, snow, (96, 116, 150))
    p.blob(50, 35, 21, 20, snow, (96, 116, 150))
    p.poly([(30, 49), (70, 49), (70, 57), (30, 57)], scarf, INK, 2)
    p.poly([(60, 54), (71, 54), (74, 74), (63, 74)], scarf, INK, 2)
    p.poly([(34, 2), (66, 2), (66, 18), (34, 18)], (60, 56, 76), INK, 2)
    p.poly([(24, 17), (76, 17), (76, 22), (24, 22)], (60, 56, 76), INK, 2)
    p.eye(42, 32, 3.4)
    p.eye(57, 32, 3.4)
    p.poly([(48, 37), (68, 41), (48, 44)], (246, 134, 44), None)
    for y in (68, 80):
        p.blob(46, y, 3, 3, (60, 56, 76), None)


def sled(p: Pen) -> None:
    p.shadow(50, 90, 46, 6)
    wood, iron = p.tint((168, 98, 50)), (104, 34, 48)
    p.stroke([(4, 88), (76, 88), (92, 76), (96, 54), (88, 40), (78, 42)], iron, 7)
    for x in (22, 64):
        p.stroke([(x, 60), (x, 88)], iron, 7)
    p.smooth([(74, 54), (76, 24), (84, 12), (92, 18), (88, 40), (84, 56)], wood)
    for y in (36, 49):
        p.poly([(4, y), (82, y - 2), (84, y + 11), (4, y + 13)], wood)
    p.stroke([(10, 43), (74, 41)], (222, 158, 98), 3)
    p.stroke([(10, 56), (74, 54)], (222, 158, 98), 3)
    p.poly([(30, 31), (46, 31), (46, 64), (30, 64)], p.tint((206, 48, 72), 8), INK, 3)


def mitten(p: Pen) -> None:
    wool = p.tint((36, 170, 180), 10)
    p.smooth([(24, 66), (22, 34), (36, 8), (58, 6), (70, 30), (72, 44), (84, 34), (95, 42), (88, 58), (72, 72)], wool)
    p.smooth([(47, 26), (53, 33), (61, 31), (58, 40), (62, 47), (53, 47), (47, 54), (42, 46), (34, 46), (38, 38),
              (35, 31), (42, 33)], WHITE, None)  # fmt: skip
    p.smooth([(16, 68), (48, 64), (78, 68), (82, 82), (76, 94), (48, 96), (18, 94), (13, 82)], WHITE)
    for x in (30, 47, 64):
        p.stroke([(x, 70), (x, 91)], (170, 200, 208), 3.5)


def tree(p: Pen) -> None:
    p.shadow(50, 94, 36, 5)
    p.poly([(42, 74), (58, 74), (60, 95), (40, 95)], (130, 88, 60))
    for y, half in ((80, 42), (58, 34), (36, 24)):
        p.poly([(50, y - 34), (50 + half, y), (50 - half, y)], p.tint((40, 112, 72), 6))
        p.stroke([(50 - half * 0.55, y - 7), (50 - half * 0.1, y - 9), (50 + half * 0.3, y - 6)], (92, 168, 108), 4)


def house(p: Pen) -> None:
    p.shadow(50, 93, 46, 6)
    wall = p.tint((250, 226, 170), 8)
    p.poly([(66, 12), (78, 12), (78, 40), (66, 40)], (170, 110, 100))
    p.poly([(14, 44), (86, 44), (86, 94), (14, 94)], wall)
    p.poly([(50, 6), (97, 48), (3, 48)], p.tint((160, 62, 62), 10))
    p.poly([(42, 66), (60, 66), (60, 94), (42, 94)], (116, 82, 120))
    for x in (22, 66):
        p.poly([(x, 58), (x + 13, 58), (x + 13, 72), (x, 72)], (140, 204, 232), INK, 3)
    p.blob(50, 32, 7, 7, (140, 204, 232), INK, 3)


def cat(p: Pen) -> None:
    p.shadow(50, 94, 38, 5)
    fur = p.tint((112, 116, 140), 10)
    p.stroke([(72, 86), (90, 78), (92, 58), (84, 48)], INK, 14)
    p.stroke([(72, 86), (90, 78), (92, 58), (84, 49)], fur, 8)
    p.smooth([(28, 94), (26, 68), (40, 48), (62, 50), (76, 72), (74, 94)], fur)
    p.poly([(15, 38), (12, 5), (36, 18)], fur)
    p.poly([(52, 18), (76, 5), (73, 38)], fur)
    p.blob(44, 35, 33, 25, fur)
    p.blob(44, 44, 13, 9, (240, 236, 236), None)
    p.blob(50, 82, 11, 12, (240, 236, 236), None)
    for x in (31, 57):
        p.blob(x, 33, 6.5, 7, (214, 232, 120), INK, 2)
        p.eye(x, 33, 3.2)
    p.poly([(40, 40), (48, 40), (44, 45)], (240, 130, 140), None)


def balloon(p: Pen) -> None:
    silk, gold = p.tint((142, 86, 190), 10), (250, 204, 92)
    p.stroke([(34, 60), (42, 82)], INK, 2.5)
    p.stroke([(66, 60), (58, 82)], INK, 2.5)
    p.poly([(38, 81), (62, 81), (59, 97), (41, 97)], (188, 130, 72))
    hull = [(50, 3), (78, 12), (91, 36), (80, 58), (60, 73), (40, 73), (20, 58), (9, 36), (22, 12)]
    p.smooth(hull, silk)
    p.smooth([(50, 4), (64, 16), (70, 38), (58, 71), (42, 71), (30, 38), (36, 16)], gold, INK, 2)
    p.smooth([(50, 4), (56, 16), (58, 38), (53, 72), (47, 72), (42, 38), (44, 16)], silk, INK, 2)


# The painter of each look and by how many degrees it may be turned; what stands on the ground leans a little at most.
LOOKS: dict[str, tuple[Callable[[Pen], None], float]] = {
    "egg": (egg, 0), "flower": (flower, 5), "ball": (ball, 0), "hen": (hen, 0), "turtle": (turtle, 0), "sun": (sun, 8),
    "parasol": (parasol, 9), "bucket": (bucket, 5), "starfish": (starfish, 180), "snowman": (snowman, 3),
    "sled": (sled, 7), "mitten": (mitten, 30), "tree": (tree, 0), "house": (house, 0), "cat": (cat, 0),
    "balloon": (balloon, 7),
}  # fmt: skip


def sprite(look: str, side: int, least: int, rng: Generator) -> Image.Image:
    """One object as an RGBA picture cut to its visible pixels: longer side `side` pixels, neither below `least`."""
    painter, turn = LOOKS[look]
    pen = Pen(SUPERSAMPLE * side, rng)
    painter(pen)
    image = pen.image
    if turn:
        image = image.rotate(float(rng.uniform(-turn, turn)), Image.Resampling.BILINEAR, expand=True)
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    image = image.crop(image.getchannel("A").getbbox())
    scale = side / max(image.size)
    small = image.resize([max(least, round(scale * v)) for v in image.size], Image.Resampling.BOX)
    pixels = np.array(small)
    # The outermost row of a tip may fade below one step of alpha: keep it visible, so that the sprite is its own box.
    for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]):
        if not edge[:, 3].any():
            edge[len(edge) // 2] = (*INK, 1)
    return Image.fromarray(pixels)


# sky above, sky at the horizon, far hills, near hills, meadow at the horizon, meadow in front
PALETTES: list[list[Colour]] = [
    [(150, 200, 232), (232, 242, 240), (170, 204, 200), (160, 208, 160), (186, 222, 150), (140, 196, 122)],
    [(246, 206, 190), (254, 238, 208), (206, 190, 210), (178, 204, 168), (212, 220, 150), (168, 198, 118)],
    [(184, 184, 226), (248, 224, 232), (182, 186, 216), (160, 200, 184), (184, 220, 176), (136, 192, 146)],
    [(160, 220, 214), (246, 246, 220), (176, 214, 190), (190, 216, 152), (222, 226, 156), (190, 204, 122)],
    [(176, 210, 240), (250, 236, 226), (196, 204, 222), (172, 208, 190), (204, 226, 186), (156, 202, 160)],
]


def background(size: int, horizon: float, rng: Generator) -> Image.Image:
    """A meadow below a sky, size x size RGB; `horizon` is the meadow's upper edge as a share of the height."""
    palette = [np.array(c, np.float32) for c in PALETTES[rng.integers(len(PALETTES))]]
    y, x = np.arange(size, dtype=np.float32)[:, None] / size, np.arange(size, dtype=np.float32)[None] / size
    ramp, depth = np.clip(y / horizon, 0, 1)[..., None], np.clip((y - horizon) / (1 - horizon), 0, 1)[..., None]
    picture = np.repeat(palette[0] * (1 - ramp) + palette[1] * ramp, size, 1)
    picture = np.asarray(_clouds(picture, size, horizon, rng), np.float32)
    meadow = palette[4] * (1 - depth) + palette[5] * depth
    haze = 140 * (y - horizon)[..., None]
    layers = ((palette[2] + haze, 0.07, 0.030), (palette[3] + haze, 0.02, 0.022), (meadow, -0.01, 0.010))
    for paint, lift, swing in layers:
        (slow, fast), (p, q) = rng.uniform(4, 9, 2).tolist(), rng.uniform(0, 2 * np.pi, 2).tolist()
        edge = horizon - lift + swing * (np.sin(slow * x + p) + 0.5 * np.sin(2 * fast * x + q))
        cover = np.clip((y - edge) * size, 0, 1)[..., None]
        picture += (paint - picture) * cover
    if rng.random() < 0.6:  # a path that winds towards the viewer
        start, drift, phase = rng.uniform((0.3, -0.2, 0), (0.7, 0.2, 6)).tolist()
        away = np.abs(x[..., None] - (start + drift * depth + 0.07 * np.sin(depth * 6 + phase)))
        inside = np.clip((0.012 + 0.075 * depth - away) * size / 1.5, 0, 1) * cover
        picture += (np.array((240, 224, 184), np.float32) - picture) * (0.6 * inside)
    image = Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8)).convert("RGBA")
    image.alpha_composite(_meadow(size, horizon, palette[5], rng))
    grain = 2.2 * rng.standard_normal((size, size, 1), np.float32)
    grain[1:] = 0.7 * (grain[1:] + grain[:-1])  # paper has fibres
    return Image.fromarray(np.clip(np.asarray(image.convert("RGB")) + grain, 0, 255).astype(np.uint8))


def paper(size: int, rng: Generator) -> Image.Image:
    """Grained paper of one colour, size x size RGB: no part of it tells where on the sheet it is."""
    palette = PALETTES[rng.integers(len(PALETTES))]
    colour = np.array(palette[rng.integers(len(palette))], np.float32)
    grain = 2.2 * rng.standard_normal((size, size, 1), np.float32)
    return Image.fromarray(np.clip(colour + grain, 0, 255).astype(np.uint8))


def _clouds(sky: np.ndarray, size: int, horizon: float, rng: Generator) -> Image.Image:
    layer = Image.new("RGBA", (size, size), (*WHITE, 0))
    draw = ImageDraw.Draw(layer)
    for _ in range(rng.integers(1, 4)):
        x, y, r = (
            rng.uniform(0.1, 0.9) * size,
            rng.uniform(0.15, 0.6) * horizon * size,
            rng.uniform(0.022, 0.038) * size,
        )
        for dx, dy, scale in ((-1.6, 0.3, 0.8), (0, -0.3, 1.25), (1.5, 0.2, 0.9), (0, 0.5, 1.0)):
            box = (x + (dx - 1.5 * scale) * r, y + (dy - scale) * r, x + (dx + 1.5 * scale) * r, y + (dy + scale) * r)
            draw.ellipse(box, (*WHITE, 215))
    depth = round(horizon * size)  # no cloud comes lower
    layer = layer.crop((0, 0, size, depth)).filter(ImageFilter.GaussianBlur(size / 160))
    image = Image.fromarray(sky.astype(np.uint8)).convert("RGBA")
    image.alpha_composite(layer)
    return image.convert("RGB")


def _meadow(size: int, horizon: float, green: np.ndarray, rng: Generator) -> Image.Image:
    """Tufts of grass, pebbles and tiny blossoms, drawn at twice the size."""
    side = 2 * size
    layer = Image.new("RGBA", (side, side), (*(int(g) for g in green), 0))
    draw = ImageDraw.Draw(layer)
    unit = side / 384
    dark = tuple(int(g * 0.78) for g in green)
    kinds = rng.choice(3, 46, p=(0.55, 0.15, 0.3))
    for kind, x, t in zip(kinds, rng.uniform(0, side, 46), np.sort(rng.uniform(0.06, 1, 46)), strict=True):
        y, grow = side * (horizon + (1 - horizon) * t), unit * (0.7 + 0.6 * t)
        if kind == 0:
            for lean in (-5, 0, 5):
                draw.line([x + lean * 0.3 * grow, y, x + lean * grow, y - 10 * grow], (*dark, 190), round(2 * grow))
        elif kind == 1:
            draw.ellipse(
                [x - 5 * grow, y - 3 * grow, x + 5 * grow, y + 3 * grow], (190, 184, 178, 230), (140, 134, 130, 230)
            )
        else:
            blossom = ((255, 255, 250, 240), (252, 224, 130, 240), (244, 190, 214, 240))[rng.integers(3)]
            for dx, dy in ((-3, 0), (3, 0), (0, -3), (0, 3)):
                draw.ellipse(
                    [x + (dx - 2.4) * grow, y + (dy - 2.4) * grow, x + (dx + 2.4) * grow, y + (dy + 2.4) * grow],
                    blossom,
                )
            draw.ellipse([x - 2 * grow, y - 2 * grow, x + 2 * grow, y + 2 * grow], (240, 180, 70, 240))
    return layer.reduce(2)
