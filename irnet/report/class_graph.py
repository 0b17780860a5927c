"""A picture of one class among its neighbours in a class graph. Takes plain names and numbers."""

import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D

from .. import files
from .fonts import typeface

Arrow = tuple[str, str, float, bool]  # relation, the other class, weight, whether it leaves the class in the middle


def draw_neighbourhood(path: Path, centre: str, arrows: Sequence[Arrow]) -> None:
    """Draw a class in the middle of its neighbours, with an arrow for every edge, coloured by its relation.

    Args:
        path: Where to write it; its ending is the format's, such as .png, .svg or .pdf.
        centre: The class.
        arrows: Its edges; wider with a larger weight.

    Raises:
        InputError: The file cannot be written.
    """
    others = list(dict.fromkeys(other for _, other, _, _ in arrows))
    relations = list(dict.fromkeys(relation for relation, _, _, _ in arrows))
    face = typeface([centre, *others, *relations])
    font = FontProperties(fname=face.path, size=9)
    largest = {relation: max(w for r, _, w, _ in arrows if r == relation) or 1.0 for relation in relations}
    side = max(6.0, 3.0 + 0.12 * len(others))
    figure = Figure(figsize=(side + 2, side))
    axes = figure.add_subplot()
    axes.set(xlim=(-1.35, 1.35), ylim=(-1.15, 1.15), aspect="equal")
    axes.axis("off")
    colours = {relation: colormaps["tab20"](i % 20) for i, relation in enumerate(relations)}
    positions = {
        other: (math.cos(angle), math.sin(angle))
        for other, angle in zip(others, (2 * math.pi * i / len(others) for i in range(len(others))), strict=True)
    }
    bends: dict[str, int] = {}
    for relation, other, weight, outgoing in arrows:
        begin, end = ((0, 0), positions[other]) if outgoing else (positions[other], (0, 0))
        bend = bends[other] = bends.get(other, -1) + 1  # parallel edges part
        style = {
            "arrowstyle": "-|>",
            "color": colours[relation],
            "linewidth": 0.6 + 1.8 * weight / largest[relation],
            "shrinkA": 30,
            "shrinkB": 30,
            "connectionstyle": f"arc3,rad={0.08 + 0.1 * bend:.2f}",
        }
        axes.annotate("", xy=end, xytext=begin, arrowprops=style)
    for name, (x, y), box in [(centre, (0.0, 0.0), "#ffe08a"), *((o, positions[o], "#eef2f7") for o in others)]:
        text = axes.text(x, y, face.plain(name), ha="center", va="center", fontproperties=font, parse_math=False)
        text.set_bbox({"boxstyle": "round,pad=0.3", "facecolor": box, "edgecolor": "#70757d"})
    lines = [Line2D([], [], color=colours[relation]) for relation in relations]
    labels = [face.plain(relation) for relation in relations]
    if lines:
        legend = axes.legend(lines, labels, prop=font, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
        for text in legend.get_texts():
            text.set_parse_math(False)
    kind = path.suffix[1:].lower()
    files.write_with(path, lambda temporary: figure.savefig(temporary, format=kind, dpi=120, bbox_inches="tight"))
