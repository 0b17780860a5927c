"""The page that compares trained variants. Takes results and pictures as plain data; runs no model."""

import math
from collections.abc import Sequence

from markupsafe import Markup

from ..models.predictions import FINAL, PredictionKey
from . import curve, draw, html
from .draw import Reasoning, chains
from .html import COLOURS
from .table import KIND_MEANINGS, comparison, final_figures, legend, metrics_of, number, percent

POINTS = 120  # of a loss's line
_DASHES = {"conv": (0, (1, 1.4)), "local": (0, (5, 1.6)), "global": (0, (5, 1.4, 1, 1.4)), "full": "solid"}


def page(
    title: str,
    runs: list[dict],
    gallery: list[dict],
    facts: dict,
    scenes: Sequence[Reasoning] | None = None,
    puzzles: Sequence[dict] = (),
) -> str:
    """The text of one self-contained HTML page that compares the variants.

    title    the page's title, shown above the finding
    runs     one dict per variant: {"variant", "results": results.json, "history": [{"step", "loss", ...}, ...],
             "seconds": of training, "parameters": count}; everything but "variant" may be absent
    gallery  boxes that the full model got right and others wrong: {"reasonings": {variant: Reasoning}, "region": int}
    facts    "bounds", "data", "machine", "versions", "seed" and others; what is absent is left out
    scenes   reasonings whose memory and attention are drawn; by default the first two of the gallery's
    puzzles  one box per kind of puzzle, shown first: {"reasonings", "region"} as in the gallery, "kind", "rule" (one
             sentence) and "clue" (indices of the boxes that give the class away)
    """
    table, measured, losses = comparison(runs, facts), _accuracies(runs), _losses(runs)
    limit = number((facts.get("bounds") or {}).get("instance_accuracy"))
    return html.render(
        "comparison.html",
        title=title,
        finding=_finding(runs, limit),
        table=table,
        legend=legend(table),
        gains={row.variant: row.cells for row in table.rows if row.kind == "gain"},
        meanings=KIND_MEANINGS,
        colours=COLOURS,
        measured=measured,
        keys=sorted({key for accuracies in measured.values() for key in accuracies}),
        iterations_chart=_iterations_chart(measured, limit),
        percent=percent,
        puzzles=puzzles,
        gallery=gallery,
        alone=sum(map(_only_full, gallery)),
        draw=draw,
        scenes=_first_scenes(gallery) if scenes is None else scenes,
        losses=[_loss_chart(name, lines) for name, (lines, _) in losses.items()],
        binned=max((size for _, size in losses.values()), default=1),
        facts={name: value for name, value in facts.items() if name != "bounds" and value is not None},
    )


def _finding(runs: list[dict], limit: float | None) -> dict | None:
    """Accuracy with and without reasoning, and whether the difference may be chance; None where one is not known."""
    by_name = {run["variant"]: run for run in runs}
    others = [variant for variant in by_name if variant != "conv"]
    best = "full" if "full" in by_name else others[-1] if others else None
    before, after = (number(final_figures(by_name.get(v, {})).get("instance_accuracy")) for v in ("conv", best))
    if before is None or after is None:
        return None
    results = by_name[best]["results"]
    count = results.get("regions")
    # Two standard errors of the difference, as if the two were measured on different boxes: a cautious yardstick.
    spread = 2 * math.sqrt((before * (1 - before) + after * (1 - after)) / count) if count else 0.0
    return {
        "best": best,
        "before": percent(before),
        "after": percent(after),
        "change": "raised" if after > before else "lowered",
        "chance": abs(after - before) <= spread,
        "limit": percent(limit),
        "results": results,
    }


def _accuracies(runs: list[dict]) -> dict[str, dict[PredictionKey, float]]:
    """The instance accuracy of every prediction of every variant that has one."""
    measured: dict[str, dict[PredictionKey, float]] = {}
    for run in runs:
        accuracies = {
            PredictionKey.parse(name): number(m.get("instance_accuracy")) for name, m in metrics_of(run).items()
        }
        measured[run["variant"]] = {key: a for key, a in accuracies.items() if a is not None}
    return measured


def _iterations_chart(measured: dict[str, dict[PredictionKey, float]], limit: float | None) -> Markup | str:
    """Accuracy over iterations, a line per variant and module; "" where no variant has iterations."""
    last = max((key.iteration for accuracies in measured.values() for key in accuracies), default=0)
    if last == 0:
        return ""
    figure, axes = html.chart()
    for variant, accuracies in measured.items():
        colour, labelled = COLOURS.get(variant, "#9a5fc0"), False
        keys = [key for key in accuracies if key != FINAL]
        for module, chain in (chains(keys) or {"conv": range(len(keys))}).items():
            points = [(keys[k].iteration, 100 * accuracies[keys[k]]) for k in chain]
            style = {"local": "solid", "global": (0, (4, 1.5))}.get(module, "dotted")
            label = None if labelled else variant
            axes.plot(
                *zip(*sorted(points), strict=True), color=colour, linestyle=style, marker="o", markersize=3, label=label
            )
            labelled = True
        if FINAL in accuracies:
            label = None if labelled else variant
            axes.plot([last + 1], [100 * accuracies[FINAL]], "o", color=colour, markersize=6, label=label)
    if limit is not None:
        axes.axhline(100 * limit, color=html.INK, linewidth=1, linestyle=(0, (2, 2)), label="box-only bound")
    axes.set_xticks(range(last + 2), ["conv", *map(str, range(1, last + 1)), "final"])
    axes.set_xlabel("iteration")
    axes.set_ylabel("instance accuracy, %")
    html.legend_above(figure, axes)
    ends = "; ".join(f"{v} ends at {percent(a[FINAL])} %" for v, a in measured.items() if FINAL in a)
    return html.svg(figure, "iterations", f"Instance accuracy over the iterations: {ends}.")


_LOSSES = {
    "loss": "The whole loss",
    "loss_conv": "Loss of the ConvNet's prediction",
    "loss_local": "Loss of the local module's predictions",
    "loss_global": "Loss of the global module's predictions",
    "loss_final": "Loss of the final mixture",
}


def _losses(runs: list[dict]) -> dict[str, tuple[dict[str, list], int]]:
    """By loss and variant, points that are means over some logged steps each; and over how many at most."""
    names = [key for run in runs for row in run.get("history") or [] for key in row if key.startswith("loss")]
    losses = {}
    for name in dict.fromkeys(names):
        lines, binned = {}, 1
        for run in runs:
            rows = [r for r in run.get("history") or [] if "step" in r and number(r.get(name)) is not None]
            points = [(row["step"], row[name]) for row in rows]
            if points:
                lines[run["variant"]] = curve.means(points, POINTS)
                binned = max(binned, curve.group_size(len(points), POINTS))
        if lines:
            losses[name] = (lines, binned)
    return losses


def _loss_chart(name: str, lines: dict[str, list]) -> tuple[Markup, str]:
    """The chart of one loss, which stays legible on a phone, and its caption."""
    figure, axes = html.chart()
    for variant, points in lines.items():
        style = {"color": COLOURS.get(variant, "#9a5fc0"), "linestyle": _DASHES.get(variant, "solid")}
        axes.plot(*zip(*points, strict=True), label=variant, **style)
    axes.set_xlabel("step")
    axes.set_ylabel(name.replace("_", " "))
    axes.set_ylim(bottom=0)
    html.legend_above(figure, axes)
    what = _LOSSES.get(name, f"Loss of {name.removeprefix('loss_').replace('_', ' ')}")
    ends = ", ".join(f"{v} ends at {points[-1][1]:.3g}" for v, points in lines.items())
    return html.svg(figure, name, f"{what} over training: {ends}."), f"{what}."


def _only_full(entry: dict) -> bool:
    """Whether no variant but "full" named this box rightly."""
    region = entry["region"]
    right = {v for v, r in entry["reasonings"].items() if r.answer(region)[0] == r.truth(region)}
    return right == {"full"}


def _first_scenes(gallery: list[dict]) -> list[Reasoning]:
    """The full model's reasonings on the first two different images of the gallery."""
    by_image = {}
    for entry in gallery:
        reasoning = entry["reasonings"].get("full")
        if reasoning is not None:
            by_image.setdefault(reasoning.image.tobytes(), reasoning)
    return list(by_image.values())[:2]
