"""Charts of records as inline SVG, and the marks of their legend. Reads no files, writes no text around them."""

import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from irnet.report import html

from . import tables
from .case import MODES
from .records import Record
from .tables import Device, Sweep, significant

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

# Middle tones: at least 3 to 1 against the page's ground in its light and in its dark scheme.
_OWN = {"cuda": ("#1f9a5b", "^"), "triton": ("#2f80dc", "s"), "cpp": ("#d4720f", "D"), "reference": ("#868c94", "o")}
_OTHER = ("#9a5fc0", "#d6455d", "#1295a3", "#8a7a1f", "#c2559b")  # five of these and eight of those: 40 looks
_MARKERS = ("v", "p", "P", "X", "h", "<", ">", "*")

AXES: dict[str, tuple] = {  # of sweeps: table, figure, unit
    "images": (tables.memory_by_images, lambda r: _over(r.peak_allocated_bytes, 2**20), "MiB"),
    "regions": (tables.time_by_regions, lambda r: _over(r.median, 1e-3), "ms"),
}

Style = tuple[str, str, bool]  # colour, marker, whether it is hollow


@dataclass(frozen=True)
class Point:
    """One implementation of one operator: what it had to do, and how fast it did it."""

    case: str
    implementation: str
    intensity: float  # fewest operations per fewest bytes
    rate: float  # fewest operations per second of the median


def styles(devices: Iterable[Device]) -> dict[str, Style]:
    """A look for every implementation, the same in all charts of a page; peers are hollow."""
    peers = {r.implementation: r.peer for device in devices for r in device.records}
    others = [name for name in peers if name not in _OWN]
    looks = {name: (_OTHER[i % len(_OTHER)], _MARKERS[i % len(_MARKERS)]) for i, name in enumerate(others)}
    ours = [name for name in _OWN if name in peers]
    return {name: (*(_OWN | looks)[name], peers[name]) for name in (*ours, *others)}


def points(device: Device, dtype: str, mode: str) -> tuple[list[Point], float | None, float | None]:
    """The operators whose operations, bytes and time are known, and the ceilings: operations and bytes per second."""
    contests = tables.contests([r for r in device.records if r.suite == "kernels" and r.dtype == dtype]).values()
    records = [r for contest in contests for r in contest[mode] if r and tables.verdict(r) == "ok" and r.median]
    matmul, copy = (
        median(rates) if (rates := [getattr(r, name) for r in records if getattr(r, name)]) else None
        for name in ("matmul_rate", "copy_rate")
    )
    reached = [
        Point(r.case, r.implementation, r.fewest_flops / r.fewest_bytes, r.fewest_flops / r.median)
        for r in records
        if r.fewest_flops and r.fewest_bytes
    ]
    return reached, matmul, copy


def drawn(devices: Iterable[Device]) -> set[str]:
    """The implementations that stand in a roofline or a sweep."""
    names = set()
    for device in devices:
        for dtype, mode in itertools.product({r.dtype for r in device.records}, MODES):
            names |= {point.implementation for point in points(device, dtype, mode)[0]}
        for axis in AXES:
            names |= {implementation for sweep in tables.sweeps(device, axis) for implementation in sweep.lines}
    return names


def roofline(points: list[Point], matmul: float, copy: float, look: dict[str, Style], name: str, what: str) -> str:
    """Achieved operations per second over operations per byte, below the two ceilings."""
    cases = sorted({p.case: p.intensity for p in points}.items(), key=lambda item: item[1])
    figure, axes = html.chart(max(4.4, 1.2 + 0.17 * len(cases)))
    ridge = matmul / copy
    left, right = min(ridge, cases[0][1]) / 3, max(ridge, cases[-1][1]) * 3
    unit, size = ("TFLOP/s", 1e12) if matmul >= 1e13 else ("GFLOP/s", 1e9)
    ceiling = [(x, min(matmul, x * copy) / size) for x in (left, ridge, right)]
    axes.loglog(*zip(*ceiling, strict=True), color=html.INK, linewidth=1.4)
    for implementation, style in look.items():
        mine = [(p.intensity, p.rate / size) for p in points if p.implementation == implementation]
        if mine:
            axes.plot(*zip(*mine, strict=True), linestyle="none", markersize=6, **_marked(style))
    axes.set_xlim(left, right)
    rates = [p.rate for p in points]
    axes.set_ylim(min(*rates, left * copy) / 2 / size, 2 * max(*rates, matmul) / size)
    _decades(axes.xaxis, axes.yaxis)
    _name_columns(axes, cases, [max(p.rate / size for p in points if p.case == case) for case, _ in cases])
    axes.set_xlabel("operations per byte")
    axes.set_ylabel(unit)
    figure.set_figheight(3 + 0.075 * max(len(case) for case, _ in cases))  # room for the names
    spoken = "; ".join(f"{p.case} {p.implementation} {rate(p.rate, 'FLOP/s')}" for p in points)
    ceilings = f"matrix product {rate(matmul, 'FLOP/s')}, copy {rate(copy, 'B/s')}"
    return html.svg(figure, name, f"Roofline of {what}. Ceilings: {ceilings}. {spoken}.")


def rooflines(devices: Iterable[Device], look: dict[str, Style]) -> list[dict]:
    """The rooflines of every device that has some, with captions: in forward, and in backward or else in step."""
    blocks = []
    for d, device in enumerate(devices):
        figures = []
        for n, dtype in enumerate(dict.fromkeys(r.dtype for r in device.records)):
            modes = []
            for mode in MODES:
                reached, matmul, copy = points(device, dtype, mode)
                if reached and matmul and copy and not (mode == "step" and modes):
                    modes.append(mode)
                    drawn = roofline(
                        reached, matmul, copy, look, f"roofline-{d}-{n}-{mode}", f"{dtype} {mode} on {device.name}"
                    )
                    ceilings = f"copy {rate(copy, 'B/s')}, matrix product {rate(matmul, 'FLOP/s')}"
                    figures.append((drawn, f"{dtype}, {mode}. Ceilings: {ceilings}."))
        if figures:
            blocks.append({"name": device.name, "figures": figures, "table": None})
    return blocks


def sweeps(devices: Iterable[Device], axis: str, look: dict[str, Style]) -> list[dict]:
    """The sweeps of every device that has some, with captions, and their table."""
    make, value, unit = AXES[axis]
    blocks = []
    for d, device in enumerate(devices):
        figures = []
        for i, measured in enumerate(tables.sweeps(device, axis)):
            drawn = sweep(measured, value, unit, look, f"{axis}-{d}-{i}", axis)
            if drawn:
                what = ", ".join(filter(None, [measured.case, measured.dtype, measured.mode, measured.rest]))
                figures.append((drawn, f"{what}. {_stopped(measured)}".strip()))
        if (table := make(device)).rows:
            blocks.append({"name": device.name, "figures": figures, "table": table})
    return blocks


def _over(value: float | None, unit: float) -> float | None:
    return None if value is None else value / unit


def _stopped(sweep: Sweep) -> str:
    """Where lines end because something went wrong."""
    ends = []
    for implementation, line in sweep.lines.items():
        bad = [
            f"{tables.verdict(r)} at {x}" for x, r in sorted(line.items()) if tables.verdict(r) not in ("ok", "skipped")
        ]
        ends += [f"{implementation}: {end}" for end in bad[:1]]
    return f"{'; '.join(ends)}." if ends else ""


def mark(style: Style) -> "Markup":
    """The mark of an implementation as a small drawing, to stand beside its name."""
    from markupsafe import Markup
    from matplotlib.markers import MarkerStyle

    colour, marker, hollow = style
    shape = MarkerStyle(marker)
    polygons = shape.get_path().transformed(shape.get_transform()).to_polygons()
    moves = "".join(f"M{' '.join(f'{x:.2f},{-y:.2f}' for x, y in corners)}Z" for corners in polygons)
    fill = "none" if hollow else colour
    return Markup(
        f'<svg viewBox="-0.75 -0.75 1.5 1.5" aria-hidden="true"><path d="{moves}" fill="{fill}" stroke="{colour}" '
        'stroke-width="0.17" stroke-linejoin="round"/></svg>'
    )


def rate(value: float, unit: str) -> str:
    """A rate with its prefix: "3.90 TB/s"."""
    size, prefix = (1e12, "T") if value >= 1e12 else (1e9, "G")
    return f"{significant(value / size)} {prefix}{unit}"


def _marked(style: Style) -> dict:
    colour, marker, hollow = style
    return {"color": colour, "marker": marker, "markerfacecolor": "none" if hollow else colour}


def _name_columns(axes: "Axes", cases: list[tuple[str, float]], tops: list[float]) -> None:
    """All points of a case share their intensity: its name stands above that column, pushed aside where it is full."""
    left, right = map(math.log, axes.get_xlim())
    ideal = [(math.log(x) - left) / (right - left) for _, x in cases]
    gap = min(0.05, 1 / len(cases))
    positions = _spread(ideal, gap)
    thin = {"color": html.INK, "alpha": 0.3, "linewidth": 0.7}
    leader = {"arrowstyle": "-", "shrinkA": 0, "shrinkB": 0, "relpos": (0.5, 0)} | thin
    look = {"rotation": 90, "ha": "center", "va": "bottom", "fontsize": 9, "color": html.INK, "arrowprops": leader}
    frames = {"xycoords": axes.get_xaxis_transform(), "textcoords": "axes fraction"}
    for (case, x), position, highest in zip(cases, positions, tops, strict=True):
        axes.plot([x, x], [highest, axes.get_ylim()[1]], **thin)
        axes.annotate(case, (x, 1), (position, 1.05), **frames, **look)


def _spread(ideal: list[float], gap: float) -> list[float]:
    """Ascending positions in 0 to 1, `gap` apart or more, near the ideal ones, which ascend."""
    offsets = [i * gap for i in range(len(ideal))]
    loose = [position - offset for position, offset in zip(ideal, offsets, strict=True)]
    up = itertools.accumulate(loose, max)  # pushed to the right only
    down = [*itertools.accumulate(reversed(loose), min)][::-1]  # to the left only; so both means keep the gaps
    room = 1 - gap - offsets[-1]
    middles = [min(max((a + b) / 2, gap / 2), gap / 2 + room) for a, b in zip(up, down, strict=True)]
    return [middle + offset for middle, offset in zip(middles, offsets, strict=True)]


def sweep(
    measured: Sweep, value: Callable[[Record], float | None], unit: str, look: dict[str, Style], name: str, axis: str
) -> str:
    """A figure over one number of a shape, a line per implementation; times carry their band from 20 to 80 per cent.

    "" where no implementation has two values.
    """
    lines = {}
    for implementation, line in measured.lines.items():
        usable = [(x, line[x]) for x in measured.values if x in line and tables.verdict(line[x]) == "ok"]
        lines[implementation] = [(x, value(r), r) for x, r in usable if value(r) is not None]
    if all(len(line) < 2 for line in lines.values()):
        return ""
    figure, axes = html.chart()
    for implementation, line in lines.items():
        if not line:
            continue
        xs, ys, records = zip(*line, strict=True)
        style, peer = _marked(look[implementation]), look[implementation][2]
        axes.plot(xs, ys, linestyle=(0, (4, 1.5)) if peer else "solid", markersize=5, **style)
        if unit == "ms":
            low, high = ([1e3 * r.percentiles[p] for r in records] for p in ("20", "80"))
            axes.fill_between(xs, low, high, color=style["color"], alpha=0.2, linewidth=0)
    scale = math.log if measured.values[0] > 0 and measured.values[-1] >= 8 * measured.values[0] else float
    axes.set_xscale("log" if scale is math.log else "linear")
    axes.set_xticks(_apart(measured.values, scale), [str(x) for x in _apart(measured.values, scale)])
    axes.minorticks_off()
    if unit == "ms" and all(y > 0 for line in lines.values() for _, y, _ in line):
        axes.set_yscale("log")
        _decades(axes.yaxis)
    else:
        axes.set_ylim(bottom=0)
    axes.set_xlabel(axis)
    axes.set_ylabel(unit)
    figure.set_figheight(2.9)
    spoken = "; ".join(
        f"{implementation} {', '.join(f'{significant(y)} at {x}' for x, y, _ in line)}"
        for implementation, line in lines.items()
        if line
    )
    return html.svg(figure, name, f"{unit} over {axis}, {measured.case} {measured.dtype}: {spoken}.")


def _apart(values: list[int], scale: Callable[[float], float]) -> list[int]:
    """The ascending values without those whose labels would touch the label of a smaller one, or of the last."""
    least = (scale(values[-1]) - scale(values[0])) / 11
    kept = [values[0]]
    for value in values[1:-1]:
        if min(scale(value) - scale(kept[-1]), scale(values[-1]) - scale(value)) >= least:
            kept.append(value)
    return [*kept, values[-1]]


def _decades(*logarithmic: "Axis") -> None:
    """Ticks of logarithmic axes as plain numbers, also between the decades where these are few."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    for axis in logarithmic:
        low, high = sorted(axis.get_view_interval())
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_locator(NullLocator())
