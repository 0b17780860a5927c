"""Pictures of one image's reasoning: boxes, answers, attention, memory. Takes plain arrays; knows nothing of models.

Pillow draws; where labels, bars and rows stand is worked out here: libraries that annotate images need OpenCV or
torchvision, let labels cover each other, and know no attention.
"""

import colorsys
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
from matplotlib import colormaps
from PIL import Image, ImageDraw, ImageFont

from ..models.predictions import CONV, PredictionKey
from .fonts import Typeface, typeface
from .html import COLOURS

Colour = tuple[int, int, int]

PANEL_WIDTH = 900  # narrowest annotated picture: below this the panel's columns no longer fit
OVERLAY_WIDTH = 480
PAGE_BOXES = 100  # on one page
LONGEST_SIDE = 2400  # larger images are shrunk, so that a picture stays something one can open and mail
QUESTION: Colour = (255, 214, 0)  # frame of the box in question
CLUE: Colour = (64, 224, 255)  # of what gives its class away, in dashes
MODULE_COLOURS: dict[str, Colour] = {
    name: tuple(bytes.fromhex(COLOURS[name].removeprefix("#"))) for name in ("conv", "local", "global")
}
_PAPER, _INK, _FAINT, _WRONG = (255, 255, 255), (24, 26, 30), (112, 117, 125), (190, 30, 30)


@dataclass
class Reasoning:
    """What one model made of one image. Tensors on the CPU are taken as well as arrays.

    image      uint8 [H, W, 3], RGB
    boxes      float32 [R, 4], (x1, y1, x2, y2) in pixels of `image`; R may be 0
    classes    C names
    keys       the K predictions in order
    scores     float32 [K, R, C], soft-max scores of every prediction
    attention  float32 [K, R], sums to one over K
    final      float32 [R, C], the scores of the mixed answer
    memory     float32 [M, h, w], RMS over the channels of the spatial memory after each of M writes, or None
    stride     pixels per memory cell; memory cell (v, u) lies at pixel (v stride, u stride)
    labels     int64 [R], the true classes where known, else None
    kinds      R strings, or empty
    variant    the model's name: "conv", "local", "global" or "full"
    given      R names that the user gave the boxes, "" for none; or empty
    first      the number of the first box, where the boxes are a part of `total`, less one

    Raises ValueError where the shapes do not fit each other.
    """

    image: np.ndarray
    boxes: np.ndarray
    classes: list[str]
    keys: list[PredictionKey]
    scores: np.ndarray
    attention: np.ndarray
    final: np.ndarray
    memory: np.ndarray | None = None
    stride: int = 16
    labels: np.ndarray | None = None
    kinds: list[str] = field(default_factory=list)
    variant: str = ""
    given: list[str] = field(default_factory=list)
    first: int = 0
    total: int | None = None

    def __post_init__(self):
        self.image = np.ascontiguousarray(self.image)
        self.boxes = np.asarray(self.boxes, np.float32).reshape(-1, 4)
        self.scores, self.attention, self.final = (
            np.asarray(a, np.float32) for a in (self.scores, self.attention, self.final)
        )
        self.labels = None if self.labels is None else np.asarray(self.labels, np.int64)
        self.memory = None if self.memory is None else np.asarray(self.memory, np.float32)
        regions, predictions, classes = len(self.boxes), len(self.keys), len(self.classes)
        self.total = regions if self.total is None else self.total
        if self.image.ndim != 3 or self.image.shape[2] != 3 or self.image.dtype != np.uint8 or self.image.size == 0:
            raise ValueError(f"image must be uint8 [H, W, 3] and not empty, got {self.image.dtype} {self.image.shape}")
        for name, shape in [
            ("scores", (predictions, regions, classes)),
            ("attention", (predictions, regions)),
            ("final", (regions, classes)),
            ("labels", (regions,)),
        ]:
            array = getattr(self, name)
            if array is not None and array.shape != shape:
                raise ValueError(f"{name} must have shape {shape}, got {array.shape}")
        for name in ("kinds", "given"):
            values = getattr(self, name)
            if values and len(values) != regions:
                raise ValueError(f"{name} must be empty or name all {regions} regions, got {len(values)}")
        if self.memory is not None and (self.memory.ndim != 3 or self.memory.size == 0):
            raise ValueError(f"memory must be [M, h, w] and not empty, got {self.memory.shape}")

    def answer(self, region: int) -> tuple[str, float]:
        """The final class of one region and its score."""
        best = int(self.final[region].argmax())
        return self.classes[best], float(self.final[region, best])

    def truth(self, region: int) -> str | None:
        """The true class of one region, or None where it is not known."""
        return None if self.labels is None else self.classes[int(self.labels[region])]

    def kind(self, region: int) -> str | None:
        """Why the class of one region can or cannot be told from its looks, or None where it is not known."""
        return self.kinds[region] if self.kinds else None


def chains(keys: list[PredictionKey]) -> dict[str, list[int]]:
    """The predictions of each module in order, as indices into `keys`: {"local": [0, 1, 2], "global": [0, 3, 4]}.

    Every chain starts at the ConvNet's prediction, from which both modules set out.
    """
    start = [k for k, key in enumerate(keys) if key == CONV]
    modules = dict.fromkeys(key.module for key in keys if key != CONV)
    return {m: start + [k for k, key in enumerate(keys) if key.module == m] for m in modules}


def trail(reasoning: Reasoning, region: int, arrow: str = "->") -> str:
    """The answers of one region where they changed between iterations: "conv: mug -> local 2: cup".

    The modules iterate side by side, so each is followed by itself from the ConvNet's answer on; a module that
    never changed its answer is not named. "" where no answer changed.
    """
    return "; ".join(_changes(reasoning, region, arrow))


def _changes(reasoning: Reasoning, region: int, arrow: str) -> list[str]:
    """The parts of `trail`, one per module that changed its answer."""
    best = reasoning.scores[:, region].argmax(axis=1)
    name = lambda k: f"{reasoning.keys[k]}: {reasoning.classes[best[k]]}"  # noqa: E731
    parts = []
    for chain in chains(reasoning.keys).values():
        changed = [k for before, k in pairwise(chain) if best[k] != best[before]]
        if changed:
            parts.append(f" {arrow} ".join(name(k) for k in [chain[0], *changed]))
    return parts


def module_mass(reasoning: Reasoning) -> dict[str, np.ndarray]:
    """How much of each region's attention lies on each module: {"conv": float32 [R], "local": ..., ...}."""
    modules = [key.module for key in reasoning.keys]
    return {m: reasoning.attention[[m == other for other in modules]].sum(axis=0) for m in dict.fromkeys(modules)}


def annotate_pages(reasoning: Reasoning) -> Iterator[Image.Image]:
    """One or more pages as `annotate` draws them, each with at most PAGE_BOXES of the boxes."""
    for start in range(0, max(1, len(reasoning.boxes)), PAGE_BOXES):
        yield annotate(part(reasoning, start, start + PAGE_BOXES))


def part(reasoning: Reasoning, start: int, stop: int) -> Reasoning:
    """The boxes `start` to `stop` alone, which keep their numbers."""
    r, which = reasoning, slice(start, stop)
    by_box = {name: getattr(r, name)[which] for name in ("boxes", "final", "kinds", "given")}
    by_box |= {name: getattr(r, name)[:, which] for name in ("scores", "attention")}
    return replace(r, **by_box, labels=None if r.labels is None else r.labels[which], first=r.first + start)


def annotate(reasoning: Reasoning) -> Image.Image:
    """The image with its boxes and answers, and under it a panel with one row per box.

    A row holds the box's number, the final class and score (with the true class where it is known and another, and
    the name that the user gave), the attention over the predictions and the trail of answers. Small images are
    enlarged by a whole factor and very large ones shrunk; the panel grows with the number of boxes and never leaves one
    out.
    """
    face = typeface([*reasoning.classes, *reasoning.given])
    given = [face.plain(name) for name in reasoning.given]
    reasoning = replace(reasoning, classes=face.names(reasoning.classes), given=given)
    picture, scale = _scaled(reasoning.image, PANEL_WIDTH)
    width = max(picture.width, PANEL_WIDTH)
    size = round(15 * (1 + (width / PANEL_WIDTH - 1) * 0.6))  # larger pictures are mostly looked at shrunk
    _draw_boxes(picture, reasoning, scale, size, face)
    panel = _panel(reasoning, width, size, face)
    page = Image.new("RGB", (width, picture.height + panel.height), _PAPER)
    page.paste(picture, ((width - picture.width) // 2, 0))
    page.paste(panel, (0, picture.height))
    return page


def highlight(reasoning: Reasoning, region: int) -> Image.Image:
    """The whole image with one box standing out and the others thin, for showing a region in its context."""
    picture, scale = _scaled(reasoning.image, OVERLAY_WIDTH)
    boxes = _pixel_boxes(reasoning.boxes, scale, picture.size)
    draw = ImageDraw.Draw(picture)
    for r, box in enumerate(boxes):
        if r != region:
            _outline(draw, box, (235, 235, 235), 2)
    _outline(draw, boxes[region], QUESTION, max(4, picture.width // 110))
    return picture


def puzzle(reasoning: Reasoning, region: int, clue: list[int]) -> Image.Image:
    """The square part of an image around one box, which is framed, and the boxes of its clue, framed in dashes."""
    left, top, right, bottom = _square(reasoning.boxes[[region, *clue]], reasoning.image.shape)
    picture, scale = _scaled(np.ascontiguousarray(reasoning.image[top:bottom, left:right]), OVERLAY_WIDTH)
    boxes = _pixel_boxes(reasoning.boxes - np.array([left, top, left, top]), scale, picture.size)
    draw, width = ImageDraw.Draw(picture), max(4, picture.width // 110)
    for other in clue:
        _dashes(draw, boxes[other], CLUE, width)
    _outline(draw, boxes[region], QUESTION, width)
    return picture


def _square(boxes: np.ndarray, shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    """A square of whole pixels inside an image that holds all boxes with some room around them, or the whole image.

    It is no smaller than three fifths of the image's shorter side, so that a scene is still seen.
    """
    height, width = shape[:2]
    x1, y1 = boxes[:, :2].min(axis=0)
    x2, y2 = boxes[:, 2:].max(axis=0)
    side = math.ceil(max(1.2 * (x2 - x1), 1.2 * (y2 - y1), 0.6 * min(height, width)))
    across, down = min(side, width), min(side, height)
    left = round(min(max(0.0, (x1 + x2 - across) / 2), width - across))
    top = round(min(max(0.0, (y1 + y2 - down) / 2), height - down))
    return left, top, left + across, top + down


def memory_overlay(reasoning: Reasoning, step: int) -> Image.Image:
    """The magnitude of the spatial memory after write `step` (0-based) as a heat map over the image.

    The colours of all writes share one scale, from zero to the largest value of any; the strip under the image
    shows it. Raises ValueError where there is no memory and IndexError where there is no such write.
    """
    if reasoning.memory is None:
        raise ValueError(f"the {reasoning.variant or 'given'} variant has no spatial memory to draw")
    writes = len(reasoning.memory)
    if not 0 <= step < writes:
        raise IndexError(f"write {step} is not among the {writes} in memory")
    picture, scale = _scaled(reasoning.image, OVERLAY_WIDTH)
    top = float(reasoning.memory.max())
    heat = _resample(reasoning.memory[step], picture.size, scale * reasoning.stride) / (top if top > 0 else 1.0)
    colours = colormaps["inferno"](np.clip(heat, 0, 1))[..., :3] * 255
    grey = np.asarray(picture.convert("L"), np.float32)[..., None]
    weight = (0.35 + 0.4 * np.clip(heat, 0, 1))[..., None]
    picture = Image.fromarray((grey * (1 - weight) + colours * weight).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    for box in _pixel_boxes(reasoning.boxes, scale, picture.size):
        _outline(draw, box, (255, 255, 255), 2)
    return _with_scale(picture, f"memory after write {step + 1} of {writes}", top)


def attention_overlay(reasoning: Reasoning) -> Image.Image:
    """The image with every box filled in the mixed colour of the modules its attention lies on.

    The frame has the colour of the module with the largest share, the bar along the lower edge shows all
    shares, and the strip under the image names the colours.
    """
    picture, scale = _scaled(reasoning.image, OVERLAY_WIDTH)
    mass = module_mass(reasoning)
    names = list(mass)
    palette = np.array([MODULE_COLOURS[name] for name in names], np.float32).reshape(-1, 3)
    shares = np.stack([mass[m] for m in names], axis=1) if names else np.zeros((len(reasoning.boxes), 0), np.float32)
    boxes = _pixel_boxes(reasoning.boxes, scale, picture.size)
    tint = Image.new("RGBA", picture.size)
    fill = ImageDraw.Draw(tint)
    order = sorted(range(len(boxes)), key=lambda r: -_area(boxes[r]))  # small boxes end up on top
    for r in order:
        fill.rectangle(boxes[r], fill=(*(int(c) for c in shares[r] @ palette), 130))
    grey = picture.convert("L").convert("RGBA")  # the only colours left are those that mean something
    picture = Image.alpha_composite(grey, tint).convert("RGB")
    draw = ImageDraw.Draw(picture)
    for r in order:
        _outline(draw, boxes[r], tuple(int(c) for c in palette[shares[r].argmax()]), 3)
    for r in order:
        x1, _, x2, y2 = boxes[r]
        _bar(draw, (x1, y2 - 8, x2, y2), shares[r], palette)
    return _with_legend(picture, [(name, tuple(int(c) for c in rgb)) for name, rgb in zip(names, palette, strict=True)])


def _font(size: int) -> ImageFont.FreeTypeFont:
    """The font of the texts that irnet itself writes, which are ASCII."""
    return typeface([]).font(size)


def _scaled(image: np.ndarray, width: int) -> tuple[Image.Image, float]:
    """The image enlarged by a whole factor towards `width`, or shrunk to `LONGEST_SIDE`, and the factor."""
    picture = Image.fromarray(image)
    longest = max(picture.size)
    if longest > LONGEST_SIDE:
        scale = LONGEST_SIDE / longest
        size = tuple(max(1, round(side * scale)) for side in picture.size)
        return picture.resize(size, Image.Resampling.LANCZOS), scale
    factor = max(1, min(math.ceil(width / picture.width), LONGEST_SIDE // longest))
    size = (picture.width * factor, picture.height * factor)
    return picture.resize(size, Image.Resampling.BICUBIC) if factor > 1 else picture.copy(), float(factor)


def _pixel_boxes(boxes: np.ndarray, scale: float, size: tuple[int, int]) -> list[tuple[int, int, int, int]]:
    """Boxes in pixels of the drawn picture, ordered, inside it and at least a few pixels wide, so all can be seen."""
    result = []
    limit = np.array([size[0] - 1, size[1] - 1] * 2, np.float64)
    for box in np.clip(np.nan_to_num(boxes.astype(np.float64) * scale), 0, limit):
        (x1, x2), (y1, y2) = sorted(box[0::2]), sorted(box[1::2])
        x1, y1 = (min(a, max(0, n - 5)) for a, n in ((x1, size[0]), (y1, size[1])))
        x2, y2 = min(max(x2, x1 + 4), size[0] - 1), min(max(y2, y1 + 4), size[1] - 1)
        result.append((round(x1), round(y1), round(x2), round(y2)))
    return result


def _area(box: tuple[int, int, int, int]) -> int:
    return (box[2] - box[0]) * (box[3] - box[1])


def _outline(draw: ImageDraw.ImageDraw, box: tuple[int, int, int, int], colour: Colour, width: int) -> None:
    """A frame with a thin dark rim, so that it shows on any ground."""
    draw.rectangle((box[0] - 1, box[1] - 1, box[2] + 1, box[3] + 1), outline=(0, 0, 0), width=width + 2)
    draw.rectangle(box, outline=colour, width=width)


def _dashes(draw: ImageDraw.ImageDraw, box: tuple[int, int, int, int], colour: Colour, width: int) -> None:
    """A frame like `_outline`'s, in dashes: every side begins and ends with one."""
    x1, y1, x2, y2 = box
    for start, end, across in ((x1, x2, True), (y1, y2, False)):
        pieces = max(3, round((end - start) / (3 * width)) // 2 * 2 + 1)
        edges = np.linspace(start, end, pieces + 1).round().astype(int).tolist()
        for low, high in list(pairwise(edges))[::2]:
            for side in (y1, y2 - width + 1) if across else (x1, x2 - width + 1):
                far = side + width - 1
                piece = (low, side, high, far) if across else (side, low, far, high)
                draw.rectangle((piece[0] - 1, piece[1] - 1, piece[2] + 1, piece[3] + 1), fill=(0, 0, 0))
                draw.rectangle(piece, fill=colour)


def _box_colour(number: int) -> Colour:
    """Colours of boxes with near numbers lie far apart: the hue advances by the golden ratio."""
    red, green, blue = colorsys.hls_to_rgb(number * 0.618034 % 1, (0.62, 0.5, 0.72)[number % 3], 0.85)
    return round(red * 255), round(green * 255), round(blue * 255)


def _prediction_colour(key: PredictionKey, keys: list[PredictionKey]) -> Colour:
    """A module's colour, from light at its first iteration to full at its last."""
    same = [other for other in keys if other.module == key.module]
    mix = 0.55 * (1 - (same.index(key) + 1) / len(same))
    return tuple(round(c + (255 - c) * mix) for c in MODULE_COLOURS[key.module])


def _on(colour: Colour) -> Colour:
    """Black or white, whichever is legible on `colour`."""
    return (0, 0, 0) if 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 135 else (255, 255, 255)


def _bar(draw: ImageDraw.ImageDraw, box, shares: np.ndarray, palette: np.ndarray, font=None) -> None:
    """A bar of stacked shares; with a font, a share's percentage stands in it where it fits."""
    x1, y1, x2, y2 = box
    total = float(shares.sum())
    edges = x1 + np.cumsum([0, *(shares / total if total > 0 else shares)]) * (x2 - x1)
    for share, left, right, rgb in zip(shares, edges, edges[1:], palette, strict=False):
        if round(right) > round(left):
            colour = tuple(int(c) for c in rgb)
            draw.rectangle((round(left), y1, round(right) - 1, y2), fill=colour)
            text = f"{share / total:.0%}"
            if font is not None and font.getlength(text) + 4 < right - left:
                draw.text(((left + right) / 2, (y1 + y2) / 2), text, font=font, fill=_on(colour), anchor="mm")


def _draw_boxes(picture: Image.Image, reasoning: Reasoning, scale: float, size: int, face: Typeface) -> None:
    draw, regions = ImageDraw.Draw(picture), len(reasoning.boxes)
    if regions == 0:
        font = _font(size)
        draw.rectangle((0, 0, font.getlength("no boxes") + size, 2 * size), fill=(0, 0, 0))
        draw.text((size // 2, size), "no boxes", font=font, fill=(255, 255, 255), anchor="lm")
        return
    boxes = _pixel_boxes(reasoning.boxes, scale, picture.size)
    line = max(1, round(size / 6)) if regions <= 40 else max(1, round(size / 10))
    for r in sorted(range(regions), key=lambda r: -_area(boxes[r])):
        _outline(draw, boxes[r], _box_colour(reasoning.first + r), line)
    font = face.font(size if regions <= 40 else max(11, round(size * 0.75)))
    for r, (text, label_box) in _place_labels(reasoning, boxes, picture.size, font).items():
        colour = _box_colour(reasoning.first + r)
        draw.rectangle(label_box, fill=colour, outline=(0, 0, 0))
        middle = ((label_box[0] + label_box[2]) / 2, (label_box[1] + label_box[3]) / 2)
        draw.text(middle, text, font=font, fill=_on(colour), anchor="mm")


def _place_labels(reasoning: Reasoning, boxes, size: tuple[int, int], font) -> dict[int, tuple[str, tuple]]:
    """A label and its place for every box, small boxes first since they have the fewest places to go.

    A label that would cover another everywhere shrinks to the box's number, which the panel explains.
    """
    height = round(font.size * 1.3)
    everything = np.array(boxes, np.float64)
    occupied, result = np.zeros((0, 4)), {}
    for r in sorted(range(len(boxes)), key=lambda r: _area(boxes[r])):
        name, score = reasoning.answer(r)
        name = name if len(name) <= 24 else f"{name[:22]}.."
        best = None
        number = reasoning.first + r + 1
        for text in (f"{number} {name} {score:.2f}", f"{number}"):
            candidates = _candidates(boxes[r], math.ceil(font.getlength(text)) + 8, height, size)
            covered = _overlap(candidates, occupied)
            others = _overlap(candidates, np.delete(everything, r, axis=0)) if len(boxes) <= 100 else 0.0
            cost = 100 * covered + 0.3 * others + 0.02 * np.arange(len(candidates))
            k = int(cost.argmin())
            if best is None or covered[k] < best[0]:
                best = (covered[k], text, candidates[k])
            if best[0] == 0:
                break
        occupied = np.concatenate([occupied, best[2][None]])
        result[r] = (best[1], tuple(int(v) for v in best[2]))
    return dict(sorted(result.items(), reverse=True))  # low numbers are drawn last, on top


def _candidates(box, width: int, height: int, size: tuple[int, int]) -> np.ndarray:
    """Places for a label of the given size about a box, best first, moved inside the picture: [12, 4]."""
    x1, y1, x2, y2 = box
    corners = [(x1, y1 - height), (x2 - width, y1 - height), (x1, y2), (x2 - width, y2), (x1, y1), (x2 - width, y1)]
    corners += [(x1, y2 - height), (x2 - width, y2 - height)]
    corners += [(x2, y1), (x1 - width, y1), (x2, y2 - height), (x1 - width, y2 - height)]
    left = np.clip([c[0] for c in corners], 0, max(0, size[0] - 1 - width))
    top = np.clip([c[1] for c in corners], 0, max(0, size[1] - 1 - height))
    return np.stack([left, top, left + width, top + height], axis=1).astype(np.float64)


def _overlap(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The share of each of [P, 4] boxes that [Q, 4] others cover, summed over the others: [P]."""
    low, high = (
        np.maximum(boxes[:, None, :2], others[None, :, :2]),
        np.minimum(boxes[:, None, 2:], others[None, :, 2:]),
    )
    shared = np.clip(high - low, 0, None).prod(axis=2).sum(axis=1)
    return shared / (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)


def _wrap(text: str, font, width: float) -> list[str]:
    """`text` in lines of at most `width` pixels; a word longer than a line is broken, nothing is cut away."""
    lines, line = [], ""
    for word in text.split(" "):
        joined = f"{line} {word}" if line else word
        if font.getlength(joined) <= width:
            line = joined
            continue
        if line:
            lines.append(line)
        while font.getlength(word) > width and len(word) > 1:
            cut = next((n for n in range(len(word) - 1, 1, -1) if font.getlength(word[:n]) <= width), 1)
            lines.append(word[:cut])
            word = word[cut:]
        line = word
    return [*lines, line]


def _panel(reasoning: Reasoning, width: int, size: int, face: Typeface) -> Image.Image:
    """The table under the annotated image: a legend, then a row per box as high as its longest cell."""
    font, small = face.font(size), face.font(round(size * 0.85))
    pad, step = round(size * 0.8), round(size * 1.3)
    regions = len(reasoning.boxes)
    if regions == 0:
        panel = Image.new("RGB", (width, step + 2 * pad), _PAPER)
        note = "There are no boxes to name in this image."
        ImageDraw.Draw(panel).text((pad, pad), note, font=font, fill=_INK)
        return panel
    number = round(font.getlength(str(reasoning.total))) + size
    edges = [pad, pad + number + pad, *(pad + number + round(width * share) for share in (0.22, 0.47))]
    widths = [edges[1] - edges[0] - pad, edges[2] - edges[1] - pad, edges[3] - edges[2] - pad, width - edges[3] - pad]

    rows = _panel_rows(reasoning, widths, font, size, step)
    colours = [_prediction_colour(key, reasoning.keys) for key in reasoning.keys]
    title = f"{reasoning.total} box{'es' if reasoning.total > 1 else ''}"
    if regions < reasoning.total:
        title = f"boxes {reasoning.first + 1} to {reasoning.first + regions} of {reasoning.total}"
    title += f", variant {reasoning.variant}" if reasoning.variant else ""
    legend = _legend_rows(list(zip(map(str, reasoning.keys), colours, strict=True)), small, width - 2 * pad)
    head = pad + step + len(legend) * step + pad + step
    panel = Image.new("RGB", (width, head + sum(height for *_, height in rows) + pad), _PAPER)
    draw = ImageDraw.Draw(panel)
    draw.text((pad, pad), title, font=font, fill=_INK)
    if reasoning.labels is not None:
        right = int((reasoning.final.argmax(axis=1) == reasoning.labels).sum())
        draw.text((width - pad, pad), f"{right} of {regions} right", font=font, fill=_INK, anchor="ra")
    _draw_legend(draw, legend, (pad, pad + step), small, step)
    for x, text in zip(edges, ("box", "final answer", "attention", "answers that changed"), strict=True):
        draw.text((x, head - round(step * 1.05)), text, font=small, fill=_FAINT)

    y = head
    for r, (lines, change_lines, height) in enumerate(rows):
        draw.line((pad, y, width - pad, y), fill=(222, 224, 228))
        top, colour = y + round(size * 0.25), _box_colour(reasoning.first + r)
        draw.rectangle((edges[0], top, edges[0] + number, top + step - 3), fill=colour, outline=_INK)
        draw.text(
            (edges[0] + number / 2, top + (step - 3) / 2),
            str(reasoning.first + r + 1),
            font=font,
            fill=_on(colour),
            anchor="mm",
        )
        for x, cell in ((edges[1], lines), (edges[3], change_lines)):
            for i, (line, ink) in enumerate(cell):
                draw.text((x, top + i * step), line, font=font, fill=ink)
        bar = (edges[2], top, edges[2] + widths[2], top + step - 3)
        _bar(draw, bar, reasoning.attention[:, r], np.array(colours, np.float32), small)
        y += height
    return panel


def _panel_rows(reasoning: Reasoning, widths: list[float], font, size: int, step: int) -> list[tuple[list, list, int]]:
    """For each box the lines of its answer, with their colours, those of what changed, and the row's height."""
    rows = []
    for r in range(len(reasoning.boxes)):
        name, score = reasoning.answer(r)
        truth = reasoning.truth(r)
        lines = [(line, _INK) for line in _wrap(f"{name}  {score:.2f}", font, widths[1])]
        if truth is not None and truth != name:
            lines += [(line, _WRONG) for line in _wrap(f"wrong, truly {truth}", font, widths[1])]
        if reasoning.given and reasoning.given[r]:
            lines += [(line, _FAINT) for line in _wrap(f"given: {reasoning.given[r]}", font, widths[1])]
        changes = _changes(reasoning, r, "->")
        change_lines = [(line, _INK) for change in changes for line in _wrap(change, font, widths[3])]
        change_lines = change_lines or [("no change", _FAINT)]
        height = step * max(len(lines), len(change_lines)) + round(size * 0.5)
        rows.append((lines, change_lines, height))
    return rows


def _legend_rows(
    entries: list[tuple[str, Colour | None]], font, width: int
) -> list[list[tuple[str, Colour | None, int]]]:
    """Legend entries in rows no wider than `width`, each with its own width; one without a colour is a heading."""
    rows, used = [[]], 0
    for name, colour in entries:
        need = round(font.getlength(name) + (2.2 if colour else 0.8) * font.size)
        if rows[-1] and used + need > width:
            rows, used = [*rows, []], 0
        rows[-1].append((name, colour, need))
        used += need
    return rows


def _draw_legend(draw: ImageDraw.ImageDraw, rows, corner: tuple[int, int], font, step: int) -> None:
    side = round(font.size * 0.85)
    for i, row in enumerate(rows):
        x, y = corner[0], corner[1] + i * step
        for name, colour, need in row:
            if colour:
                draw.rectangle((x, y + 2, x + side, y + 2 + side), fill=colour)
            draw.text((x + (round(1.35 * side) if colour else 0), y), name, font=font, fill=_INK)
            x += need


def _resample(grid: np.ndarray, size: tuple[int, int], cell: float) -> np.ndarray:
    """A [h, w] map read bilinearly at every pixel of a picture whose cells are `cell` pixels apart: [H, W]."""

    def hat(pixels: int, cells: int) -> np.ndarray:
        at = np.clip((np.arange(pixels) + 0.5) / cell, 0, cells - 1)
        return np.clip(1 - np.abs(at[:, None] - np.arange(cells)[None]), 0, None).astype(np.float32)

    return hat(size[1], grid.shape[0]) @ grid @ hat(size[0], grid.shape[1]).T


def _with_scale(picture: Image.Image, title: str, top: float) -> Image.Image:
    """The picture over a strip with a title and the colour scale from 0 to `top`."""
    size = max(13, round(picture.width / 27))
    font, pad = _font(size), size // 2
    caption = f"{top:.3g}"
    room, ramp = font.getlength("0") + font.getlength(caption) + 4 * pad, 6 * size
    title_lines = _wrap(title, font, max(picture.width, 8 * size) - 2 * pad)
    beside = len(title_lines) == 1 and font.getlength(title) + room + ramp + 2 * pad <= picture.width
    height = (len(title_lines) + (not beside)) * round(size * 1.5) + pad
    page = Image.new("RGB", (max(picture.width, 8 * size), picture.height + height), _PAPER)
    page.paste(picture, (0, 0))
    draw, y = ImageDraw.Draw(page), picture.height + pad
    for line in title_lines:
        draw.text((pad, y), line, font=font, fill=_INK)
        y += round(size * 1.5)
    y = picture.height + pad if beside else y
    x = page.width - round(room + ramp) if beside else pad
    draw.text((x, y), "0", font=font, fill=_INK)
    x += round(font.getlength("0")) + pad
    colours = (colormaps["inferno"](np.linspace(0, 1, ramp))[:, :3] * 255).astype(np.uint8)
    page.paste(Image.fromarray(np.repeat(colours[None], size, axis=0)), (x, y))
    draw.text((x + ramp + pad, y), caption, font=font, fill=_INK)
    return page


def _with_legend(picture: Image.Image, entries: list[tuple[str, Colour]]) -> Image.Image:
    size = max(13, round(picture.width / 27))
    font, pad, step = _font(size), size // 2, round(size * 1.5)
    width = max(picture.width, 8 * size)
    rows = _legend_rows([("attention on", None), *entries], font, width - 2 * pad)
    page = Image.new("RGB", (width, picture.height + len(rows) * step + pad), _PAPER)
    page.paste(picture, (0, 0))
    _draw_legend(ImageDraw.Draw(page), rows, (pad, picture.height + pad), font, step)
    return page
