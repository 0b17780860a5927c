"""The learning curve of a run: losses and held-out metrics over the steps, from the lines of its metrics.jsonl.
Reads and writes no file."""

import math

from . import html

POINTS = 200  # of a line; where there are more, each is the mean of several
COLOURS = {"conv": "#808080", "local": "#2b7ad2", "global": "#de740e"}
METRICS = {"class_ap": "#2b7ad2", "class_accuracy": "#de740e", "instance_accuracy": "#3a9a5c"}


def learning_curve(lines: list[dict], form: str = "png") -> bytes:
    """Draw the losses above and below them, where there are evaluations, metrics of the final prediction (lines) and
    of the ConvNet's (dashes).

    Args:
        lines: Those of metrics.jsonl.
        form: "png" or "svg".

    Returns:
        The picture as a file.
    """
    steps = [line for line in lines if "loss" in line]
    evaluations = [line for line in lines if "metrics" in line]
    panels = [(draw, of) for draw, of in ((_losses, steps), (_metrics, evaluations)) if of]
    figure, axes = html.charts(max(1, len(panels)))
    for each, (draw, of) in zip(axes, panels, strict=False):
        draw(each, of)
        each.set_xlim(0, max(line["step"] for line in lines) or 1)
        each.xaxis.get_major_locator().set_params(integer=True)
        html.legend_of(each)
    axes[-1].set_xlabel("step")
    return html.file(figure, form)


def _losses(axes, lines: list[dict]) -> None:
    for name in (name for name in lines[0] if name.startswith("loss")):
        module = name.removeprefix("loss_")
        style = {"linewidth": 1.8} if name == "loss" else {"linestyle": "dotted"} if module == "final" else {}
        points = means([(line["step"], line[name]) for line in lines if name in line], POINTS)
        axes.plot(*zip(*points, strict=True), label=module, color=COLOURS.get(module, html.INK), **style)
    axes.set_ylabel("loss")
    axes.set_ylim(bottom=0)


def _metrics(axes, lines: list[dict]) -> None:
    """Each with a point where it was measured."""
    for name, colour in METRICS.items():
        for prediction, style in (("final", "solid"), ("conv", "dashed")):
            points = [(line["step"], 100 * line["metrics"][prediction][name]) for line in lines]
            label = name.replace("_", " ").replace("ap", "AP") if prediction == "final" else None
            marks = {"color": colour, "linestyle": style, "marker": "o", "markersize": 3}
            axes.plot(*zip(*points, strict=True), label=label, **marks)
    axes.plot([], [], color=html.INK, linestyle="dashed", label="ConvNet alone")
    axes.set_ylabel("held-out images, %")
    axes.set_ylim(0, 100)


def means(points: list[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """At most so many points, which are means over as many neighbours each; the last of them over what is left."""
    size = max(1, math.ceil(len(points) / most))
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [tuple(sum(column) / len(group) for column in zip(*group, strict=True)) for group in groups]
