"""The learning curve of a run: losses and held-out metrics over the steps, from the lines of its metrics.jsonl.
Reads and writes no file."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from . import html
from .table import number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

POINTS = 200  # of a line; where there are more, each is the mean of several
METRICS = {"class_ap": "#2b7ad2", "class_accuracy": "#de740e", "instance_accuracy": "#3a9a5c"}
Points = list[tuple[float, float]]


def learning_curve(lines: list[dict], form: str = "png") -> bytes:
    """The picture of `figure` as a file.

    Args:
        lines: Those of metrics.jsonl.
        form: "png" or "svg".

    Returns:
        The content of the file.
    """
    return html.file(figure(lines), form)


def figure(lines: list[dict]) -> "Figure":
    """Draw the losses above and below them, where there are evaluations, metrics of the final prediction (lines) and
    of the ConvNet's (dashes). Values that are missing or not finite are left out.

    Args:
        lines: Those of metrics.jsonl.

    Returns:
        The figure.
    """
    panels = [(draw, of) for draw, of in ((_draw_losses, _losses(lines)), (_draw_metrics, _metrics(lines))) if of]
    picture, axes = html.charts(max(1, len(panels)))
    last = max((points[-1][0] for _, of in panels for points in of.values()), default=0)
    for each, (draw, of) in zip(axes, panels, strict=False):
        draw(each, of)
        each.set_xlim(0, last or 1)
        each.xaxis.get_major_locator().set_params(integer=True)
        html.legend_of(each)
    axes[-1].set_xlabel("step")
    return picture


def description(lines: list[dict]) -> str:
    """What `figure` shows, in a sentence; "" where it shows nothing."""
    losses = [f"{name} ends at {points[-1][1]:.3g}" for name, points in _losses(lines).items()]
    whose = {"conv": "the ConvNet", "final": "the final answer"}
    metrics = [
        f"{_label(name)} of {whose[prediction]} ends at {points[-1][1]:.3g} %"
        for (name, prediction), points in _metrics(lines).items()
    ]
    parts = [("Losses over training", losses), ("Metrics of held-out images", metrics)]
    return " ".join(f"{what}: {', '.join(ends)}." for what, ends in parts if ends)


def _series(lines: list[dict], value: Callable[[dict], Any]) -> Points:
    """A value over the steps, where a line has it and it is finite."""
    points = ((line["step"], number(value(line))) for line in lines if "step" in line)
    return [(step, y) for step, y in points if y is not None]


def _losses(lines: list[dict]) -> dict[str, Points]:
    """The losses by the module whose they are, and "loss", their sum."""
    names = dict.fromkeys(name for line in lines for name in line if name.startswith("loss"))
    series = {name.removeprefix("loss_"): _series(lines, lambda line, name=name: line.get(name)) for name in names}
    return {name: points for name, points in series.items() if points}


def _metrics(lines: list[dict]) -> dict[tuple[str, str], Points]:
    """The metrics in per cent, by their name and the prediction whose they are."""
    evaluations = [line for line in lines if isinstance(line.get("metrics"), dict)]
    series = {}
    for name in METRICS:
        for prediction in ("final", "conv"):
            value = lambda line, p=prediction, n=name: (line["metrics"].get(p) or {}).get(n)  # noqa: E731
            series[name, prediction] = [(step, 100 * y) for step, y in _series(evaluations, value)]
    return {key: points for key, points in series.items() if points}


def _draw_losses(axes, losses: dict[str, Points]) -> None:
    for name, points in losses.items():
        style = {"linewidth": 1.8} if name == "loss" else {"linestyle": "dotted"} if name == "final" else {}
        colour = html.COLOURS.get(name, html.INK)
        axes.plot(*zip(*means(points, POINTS), strict=True), label=name, color=colour, **style)
    axes.set_ylabel("loss")
    axes.set_ylim(bottom=0)


def _draw_metrics(axes, metrics: dict[tuple[str, str], Points]) -> None:
    """Draw a line for each metric, with a point where it was measured."""
    for (name, prediction), points in metrics.items():
        label = _label(name) if prediction == "final" else None
        style = "solid" if prediction == "final" else "dashed"
        marks = {"color": METRICS[name], "linestyle": style, "marker": "o", "markersize": 3}
        axes.plot(*zip(*points, strict=True), label=label, **marks)
    axes.plot([], [], color=html.INK, linestyle="dashed", label="ConvNet alone")
    axes.set_ylabel("held-out images, %")
    axes.set_ylim(0, 100)


def _label(metric: str) -> str:
    return metric.replace("_", " ").replace("ap", "AP")


def group_size(points: int, most: int) -> int:
    """How many neighbours make one point, so that at most `most` are left."""
    return max(1, math.ceil(points / most))


def means(points: Points, most: int) -> Points:
    """At most so many points, which are means over as many neighbours each; the last of them over what is left."""
    size = group_size(len(points), most)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [tuple(sum(column) / len(group) for column in zip(*group, strict=True)) for group in groups]
